"""Files that stand where a corpus file should, and what they are."""

import re

_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\b.*?^size (\d+)", re.DOTALL | re.MULTILINE)
_UTF_16 = re.compile(rb"\xff\xfe(?!\0\0)|\xfe\xff|[\[{]\0[^\0]\0")
_ANNEX = re.compile(rb"\S*/annex/objects/\S+\s*$")
_PAGE = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_STORE = re.compile(rb"\s*<\?xml\b.*?<Error>.*?<Code>(\w+)</Code>", re.DOTALL)


def lfs_bytes(head: bytes) -> int | None:
    """The size of the file for which a Git LFS pointer with these first bytes stands; None where it is no pointer."""
    found = _LFS.match(head)
    return int(found[1]) if found else None


def named(head: bytes) -> str:
    """What a file with these first bytes is, which is no corpus file of any kind, and what to do; else empty."""
    if (size := lfs_bytes(head)) is not None:
        return f"a Git LFS pointer to {size:,} bytes, and not the file itself: fetch it with 'git lfs pull'"
    if found := _STORE.match(head):
        return f"the answer of a store, {found[1].decode()}, and not the file itself: download it again"
    if _PAGE.match(head):
        return "an HTML page, as a download that failed leaves it: download the file again"
    if _UTF_16.match(head):
        return "a text of UTF-16: write it as UTF-8"
    if _ANNEX.match(head):
        return "a pointer of git-annex, and not the file itself: fetch it with 'git annex get'"
    if head and not head.strip(b"\0"):
        return "nothing but zeros, as a download or a copy that broke off leaves it: fetch the file again"
    return ""
