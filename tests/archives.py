"""Zip files as a test makes and looks at them."""

import zipfile


def entries(path):
    """What an archive holds, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, content):
    """An archive of files by name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def files(folder):
    """Every path in and below a folder."""
    return sorted(str(path) for path in folder.rglob("*"))
