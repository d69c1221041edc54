"""The published split: how many rows each benchmark file has, and its checksum.

The four science tasks and tool use are the files that SDPO published and that SRPO and DRIFT use.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What a published file looks like.

    Attributes:
      rows: number of rows.
      checksum: `sha256 HEX`, or `git-blob HEX` where only git's name of the content is known.
    """

    rows: int
    checksum: str


# Task and split. `stand_in` is our own: 114 rows of another ToolAlpaca file, for smoke runs.
FILES = {
    ("biology", "train"): Published(
        450, "sha256 7ffbfe4a85c7386e2ca78abd3de82c84d339ecbf0beb9bff93f3e599ac6298f2"
    ),
    ("biology", "test"): Published(
        50, "sha256 0ffe8df8f33154ca6af90c75b278f8602d75376db79e295e16a29fc9a5da325a"
    ),
    ("chemistry", "train"): Published(
        1890, "sha256 dc841dc92a16a6af3944336ecd887e80907bc9244f2bd51cd2e3869959a84029"
    ),
    ("chemistry", "test"): Published(
        210, "sha256 772adb9f2bdb1bbc2a542f350b55a1b23091fa98e793f5e24c5dba410ce299bf"
    ),
    ("material", "train"): Published(
        841, "sha256 7da3afdc3194ae575e4e28f331fbc5f402dee7f2446f8294f15f619c509e111f"
    ),
    ("material", "test"): Published(
        94, "sha256 2b3d7e3bcebda39ba47856ea5aae5ebcd0b3ba43b1e750cd4b02e40056b079cf"
    ),
    ("physics", "train"): Published(
        720, "sha256 3c16e829ceb9c580a58b6cb46fe841d5c5d05608f89b738b5c4eadf90cd78bc7"
    ),
    ("physics", "test"): Published(
        80, "sha256 fde88cd10e4192115d550000a8b5b8b714aa8a2651abba499b1f8b8e6f72c1d3"
    ),
    ("tooluse", "train"): Published(4046, "git-blob b3f1449172a9a98389c03d38f83ab2795426d7f8"),
    ("tooluse", "test"): Published(
        68, "sha256 947dbf5d93a79448dbf41f00c6701402e5f2c8324936e89ed5623c553675e438"
    ),
    ("tooluse", "stand_in"): Published(
        114, "sha256 3927b334453fe0018ff1bdf3d72b71c38534a99dc095baf7c03f3d4da639a3a6"
    ),
}


def measure(data: bytes, kind: str) -> Published:
    """Rows and checksum of a file's content; `kind` is the first word of the checksum."""
    if kind == "git-blob":
        digest = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    else:
        digest = hashlib.sha256(data)
    return Published(data.count(b"\n"), f"{kind} {digest.hexdigest()}")


def compare(task: str, split: str, data: bytes) -> tuple[Published, Published]:
    """What the content is and what was published; they are equal for the published file."""
    expected = FILES[task, split]
    return measure(data, expected.checksum.split()[0]), expected


def is_published(task: str, split: str, data: bytes) -> bool:
    """Whether the content is the published file, to the byte."""
    found, expected = compare(task, split, data)
    return found == expected


def difference(task: str, split: str, data: bytes) -> str:
    """Both sides of a mismatch, for a message."""
    found, expected = compare(task, split, data)
    return (
        f"{found.rows} rows, {found.checksum}; "
        f"the published one has {expected.rows} rows, {expected.checksum}"
    )
