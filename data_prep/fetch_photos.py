"""Fetch photographs with captions that anyone may use: cut-outs and landscapes out of two packages of Debian.

    python data_prep/fetch_photos.py --out data/photos
    python data_prep/fetch_photos.py --out data/photos --tree /usr/share      # packages that are installed already

Written is what people have: pictures as they are, of all sizes, shapes and modes, most of them transparent, and a
`metadata.jsonl` in the form of Hugging Face's imagefolder, for data_prep/convert_captions.py. From
`tuxpaint-stamps-default` come about 400 animals, fruit, flowers, houses and vehicles, each with its caption; from
`mate-backgrounds` the photographs of nature, captioned by their file names. Drawings (symbols, cartoons) and mirrored
doubles are left out. Both packages are under the GPL-2, their authors are in /usr/share/doc/PACKAGE/copyright.

Without --tree, `apt-get download` and `dpkg` of a Debian or Ubuntu fetch (210 MB) and unpack them; nothing is
installed, and no root is needed.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unified.arguments.parser import parse, run_main
from unified.files.atomic import check_not_exists, new_folder, write_text

PACKAGES = ("tuxpaint-stamps-default", "mate-backgrounds")
DRAWN = re.compile(r"^symbols/|cartoon|roadsigns|flags|_mirror\.png$")  # of the stamps


@dataclass
class FetchArguments:
    """Where the pictures come from and go to."""

    out: str = field(metadata={"help": "folder for the pictures and metadata.jsonl; must not exist"})
    tree: str | None = field(default=None, metadata={"help": "a /usr/share with the packages; default: download them"})


def captioned(share: Path) -> Iterator[tuple[Path, str, str]]:
    """File, name in the folder, and caption of every photograph below a `/usr/share`."""
    stamps = share / "tuxpaint" / "stamps"
    for file in sorted(stamps.rglob("*.png")):
        inner, text = file.relative_to(stamps).as_posix(), file.with_suffix(".txt")
        if DRAWN.search(inner) or not text.is_file():
            continue
        caption = text.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip().rstrip(".")
        if caption:
            yield file, inner.replace("/", "-"), caption[0].lower() + caption[1:]
    for file in sorted((share / "backgrounds" / "mate" / "nature").glob("*.jpg")):
        yield file, f"nature-{file.name}", " ".join(re.findall("[A-Z][a-z]*", file.stem)).lower()


def unpack(folder: Path) -> Path:
    """Download the packages and unpack them under `folder`; their `/usr/share`."""
    run(["apt-get", "download", *PACKAGES], folder)
    for package in folder.glob("*.deb"):
        run(["dpkg", "-x", package.name, "."], folder)
    return folder / "usr" / "share"


def run(command: list[str], folder: Path) -> None:
    """A command of Debian's in `folder`; ValueError where there is none, or it fails."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, encoding="utf-8")
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = said.splitlines()[-1] if said else error
        raise ValueError(
            f"{' '.join(command)} failed ({reason}); it takes a Debian with network, or --tree with the usr/share of "
            "the unpacked packages"
        ) from None


def main() -> None:
    (args,) = parse((FetchArguments,))
    check_not_exists(args.out)
    with new_folder(args.out) as partial:
        packages = partial / "packages"
        packages.mkdir()
        found = list(captioned(Path(args.tree) if args.tree else unpack(packages)))
        if not found:
            raise ValueError(f"--tree {args.tree} holds none of {', '.join(PACKAGES)}; give the usr/share they lie in")
        for file, name, _ in found:
            shutil.copyfile(file, partial / name)
        shutil.rmtree(packages)
        rows = [json.dumps({"file_name": name, "text": caption}, ensure_ascii=False) for _, name, caption in found]
        write_text(partial / "metadata.jsonl", "\n".join(rows) + "\n")
    print(json.dumps({"out": args.out, "pictures": len(found)}))


if __name__ == "__main__":
    run_main(main)
