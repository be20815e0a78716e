"""Support for queueing systems. To add one, implement `protocol.Queue` in a module and select it in `select`."""
