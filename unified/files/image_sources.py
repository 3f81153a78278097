"""A picture in a text, read alike at every door: a data: URI, base64 alone, a file: URL, or a path.

Rows, the processor and the server take from it what they may: the server no files, nothing but the server the web.
"""

import base64
import re
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):")  # two letters or more: C: is a drive
_DATA = re.compile(r"\s*data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")  # RFC 4648's other alphabet
_LONGEST_PATH = 4096  # characters, Linux's limit
_HEAD = 32  # characters of base64 by which a picture is known
_PICTURE = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|....ftyp|\0\0\0\x0cjP|qoif", re.DOTALL
)


def scheme_of(text: str) -> str:
    """The scheme of a data: or file: URI or of a URL with a host, lower case; empty for paths and base64."""
    found = _SCHEME.match(text)
    name = found[1].lower() if found else ""
    return name if found and (name in ("data", "file") or text.startswith("//", found.end())) else ""


def as_data_uri(text: str) -> str:
    """What a key `base64` holds, which some write as a data: URI, as one."""
    return text if scheme_of(text) == "data" else f"data:;base64,{text}"


def decode_data_uri(uri: str) -> bytes:
    """Bytes of a data: URI in base64; lines, blanks, the alphabet for URLs and percent-encoding are taken.

    Raises ValueError that says what it is instead, to stand behind its name.
    """
    head = _DATA.match(uri)
    if not head:
        raise ValueError("is no base64 (data:image/png;base64,...); give the picture's path")
    return _decoded(uri[head.end() :])


def image_source(text: str, folder: str | Path = "") -> bytes | Path:
    """The bytes of a picture that a text holds, or the path of its file, which starts in `folder`; no file is opened.

    Raises ValueError that says what it is instead, to stand behind its name.
    """
    scheme = scheme_of(text)
    if scheme == "data":
        return decode_data_uri(text)
    if scheme not in ("", "file"):
        raise ValueError("is on the web; download it and give its path")
    if not scheme and _is_base64(text):
        return _decoded(text)
    path = _path_of(text) if scheme else text
    if not path.strip() or "\0" in path:
        raise ValueError("names no file; give the picture's path")
    return Path(folder) / path


def _path_of(url: str) -> str:
    parts = urlparse(url.strip())
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"is on the machine {parts.netloc}; copy it here and give its path")
    return url2pathname(parts.path)


def _is_base64(text: str) -> bool:
    """Whether a text begins as a picture does in base64, or is too long for a path."""
    if len(text) > _LONGEST_PATH:
        return True
    try:
        return _PICTURE.match(_decoded("".join(text[: 2 * _HEAD].split())[:_HEAD])) is not None
    except ValueError:
        return False


def _decoded(text: str) -> bytes:
    text = unquote(text) if "%" in text else text
    try:
        return base64.b64decode("".join(text.split()).translate(_URL_SAFE), validate=True)
    except ValueError as error:  # binascii's, and that of other characters than ASCII
        raise ValueError(f"is no base64 ({error}); write it whole") from None
