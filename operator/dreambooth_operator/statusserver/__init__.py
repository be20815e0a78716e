"""The status server: receives progress reports from trainers. Every replica serves it, whether it leads or not."""
