"""Certificates as an operator makes them: by openssl, with a CA of one's own."""

import subprocess
from pathlib import Path


def openssl(*arguments, **options):
    """Runs openssl and asserts that it was content."""
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Authority:
    """A CA in a folder. Files: `NAME.pem`, `NAME.key`, and `ca.pem`."""

    def __init__(self, folder, name="ca"):
        self.folder = Path(folder) / name
        self.folder.mkdir(parents=True)
        self.pem, self.key = self.folder / "ca.pem", self.folder / "ca.key"
        self._serial = 0x1000
        self._new_key(self.key)
        openssl(
            *("req", "-x509", "-new", "-key", self.key, "-subj", f"/CN=Test CA {name}", "-days", 30, "-out", self.pem),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        (self.folder / "index.txt").write_text("")
        (self.folder / "number").write_text("1000")
        (self.folder / "ca.conf").write_text(
            f"[ca]\ndefault_ca = own\n[own]\ndatabase = {self.folder}/index.txt\ncrlnumber = {self.folder}/number\n"
            "default_md = sha256\n"
        )

    @staticmethod
    def _new_key(path):
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)

    def issue(self, name, *, cn=None, san="DNS:localhost,IP:127.0.0.1", days=30):
        """A certificate; gives the paths of it and of its key. With negative days it ended long ago."""
        self._serial += 1
        pem, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        self._new_key(key)
        openssl("req", "-new", "-key", key, "-subj", f"/CN={cn or name}", "-out", request)
        extensions.write_text(f"subjectAltName={san}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self.key, "-set_serial", self._serial),
            *("-days", days, "-extfile", extensions, "-out", pem),
        )
        return pem, key

    def revoke(self, *names):
        """Revokes, and gives the path of the list that says so."""
        conf, crl = ("-config", self.folder / "ca.conf"), self.folder / "ca.crl"
        signing = ("-keyfile", self.key, "-cert", self.pem)
        for name in names:
            openssl("ca", *conf, *signing, "-revoke", self.folder / f"{name}.pem")
        openssl("ca", *conf, *signing, "-gencrl", "-crldays", 30, "-out", crl)
        return crl
