"""A temporary certificate authority, created with openssl and valid for a month."""

import subprocess
from pathlib import Path


class Authority:
    """Issues keys and certificates into `folder`. `ca` is the root certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.crt"
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "openssl.cnf"
        self._config.write_text("[req]\ndistinguished_name = names\n[names]\n")
        if not self.ca.exists():
            root = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
            self._certify("ca", "/CN=dev-ca", root, [])

    def issue(self, name: str, subject: str, *, hosts: str = "") -> tuple[Path, Path]:
        """Certificate and key for `subject` (as `/O=group/CN=user`).

        With `hosts` (openssl's subjectAltName syntax) it also serves TLS. An existing pair
        of the same name is returned as it is.
        """
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        if not certificate.exists():
            extensions = ["extendedKeyUsage=clientAuth,serverAuth"]
            if hosts:
                extensions.append(f"subjectAltName={hosts}")
            signer = ["-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key")]
            self._certify(name, subject, extensions, signer)
        return certificate, key

    def key_pair(self, name: str) -> tuple[Path, Path]:
        """A key pair (public, private) for signing service account tokens."""
        public, private = self.folder / f"{name}.pub", self.folder / f"{name}.key"
        if not public.exists():
            self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
            self._openssl("ec", "-in", private, "-pubout", "-out", public)
        return public, private

    def _certify(self, name: str, subject: str, extensions: list[str], signer: list[str]) -> None:
        files = ["-keyout", self.folder / f"{name}.key", "-out", self.folder / f"{name}.crt"]
        wanted = [part for extension in extensions for part in ("-addext", extension)]
        self._openssl(
            *("req", "-x509", "-config", self._config, *_NEW_KEY, "-subj", subject),
            *(*signer, *wanted, *files),
        )

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
