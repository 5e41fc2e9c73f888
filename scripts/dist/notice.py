"""NOTICE: who made what the archive holds, and the licence texts, each once.

In: crates and libraries. Out: text. Caller: main.py.
"""

import re
from pathlib import Path

from crates import DistError, licence_files

# For crates that carry no text of their licence.
STANDARD = Path("packaging/licences")


def texts_of(crate):
    """(where it stands, text) of a crate's licences; the standard text where the crate has none of its own at its top."""
    files = licence_files(crate)
    texts = [(str(path.relative_to(crate.folder)), path.read_text(errors="replace")) for path in files]
    if not any(path.parent == crate.folder for path in files):
        texts = standard(crate) + texts
    return texts


def standard(crate):
    """The standard text of the first of a crate's licences that there is one of, with the crate's authors."""
    for licence in re.split(r" OR |[()]", crate.licence):
        path = STANDARD / f"{licence.strip()}.txt"
        if licence.strip() and path.is_file():
            return [(licence.strip(), path.read_text().replace("{authors}", ", ".join(crate.authors) or f"the authors of {crate.name}"))]
    raise DistError(f"{crate.key} ({crate.licence}) carries no licence text, and {STANDARD}/ has none for it: add one")


def same(text):
    """What two texts have in common that differ only in spaces, line ends and case."""
    return re.sub(r"\W+", " ", text).strip().lower()


def collect(entries):
    """[(who, [(place, text)])] → [(text, [who…])], texts once, in the order of their first appearance."""
    kept = {}
    for who, texts in entries:
        for place, text in texts:
            holder = kept.setdefault(same(text), (text, []))
            holder[1].append(f"{who}: {place}")
    return list(kept.values())


def write(version, crates, libraries):
    foreign = [crate for crate in crates if not crate.ours]
    lines = [f"taiji {version}", "Licensed under the Apache License 2.0, see LICENSE.", ""]
    lines += ["The two programs hold, and the archive has beside them, the work of others; of no model and no data. Their licences follow.", ""]
    lines += ["CRATES COMPILED IN", ""] + [f"  {crate.name} {crate.version}: {crate.licence}" for crate in foreign]
    for how, title in (("compiled in", "LIBRARIES COMPILED IN"), ("shipped", "LIBRARIES SHIPPED"), ("linked", "LIBRARIES OF THE SYSTEM THAT ARE LINKED, NOT SHIPPED")):
        lines += ["", title, ""]
        lines += [f"  {library.name} {library.version}: {library.licence}" for library in libraries if library.how == how]
    entries = [(crate.key, texts_of(crate)) for crate in foreign] + [(f"{library.name} {library.version}", library.texts) for library in libraries]
    lines += ["", "TEXTS"]
    for text, holders in collect(entries):
        lines += ["", "=" * 100] + holders + ["-" * 100, "", text.replace("\r\n", "\n").rstrip()]
    return "\n".join(lines) + "\n"
