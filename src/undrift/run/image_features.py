"""What the frozen vision tower says about each picture, computed once and kept on disk.

A run trains adapters of the language model only, so a picture's features never change (unless
`train_projector` is on, when pixels are used): they are computed once per backbone, kept in half
precision, and put in the place of the image tokens. The folder's name is the backbone's
fingerprint, a file's begins with the number of how pictures are read, and the key within it is the
digest of the picture's bytes: what has changed can never be answered from an old file.

The last bit of a sum depends on how a matrix product was cut, hence on the batch's size and on the
number of threads. Every batch is therefore full (the last one repeats a picture), and each device
and number of threads has a folder of its own: the same run finds the same bits whatever was run
before it. Their digest stands in the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from undrift.data.picture_decoding import READING
from undrift.errors import DataError, RunDirError
from undrift.methods.shared.tensor_files import load_tensors, save_tensors
from undrift.run.ranks import first_before_others
from undrift.untrusted import open_regular, why

Encoder = Callable[[Sequence[Path]], Tensor]
ProgressCall = Callable[[int, int, int], None]


class FeatureStore:
    """Image features by picture, shape (n_tokens, d) each, all of one shape.

    Args:
        folder: Where the files of this backbone lie; made when something is written.
        encode: Pictures to features (B, n_tokens, d).
        batch_size: Pictures per call of `encode`, never fewer.
    """

    def __init__(self, folder: Path, encode: Encoder, batch_size: int = 8) -> None:
        self.folder = folder
        self._encode = encode
        self._batch_size = batch_size
        self._features: Tensor | None = None  # (pictures, n_tokens, d), float16
        self._row_of_digest: dict[str, int] = {}
        self._row_of_path: dict[Path, int] = {}

    def prepare(self, pictures: Iterable[Path], progress: ProgressCall | None = None) -> None:
        """Make the features of every picture available, computing those never seen before.

        Args:
            pictures: Picture files, in any order, repetitions allowed.
            progress: Called with (pictures done, pictures to compute, pictures just done).

        Raises:
            DataError: If a picture cannot be read.
        """
        with first_before_others():
            self._prepare(dict.fromkeys(pictures), progress)

    def _prepare(self, pictures: Iterable[Path], progress: ProgressCall | None) -> None:
        unseen = [path for path in pictures if path not in self._row_of_path]
        digests = {path: _digest(path) for path in unseen}
        if any(digest not in self._row_of_digest for digest in digests.values()):
            self._read({*digests.values()})
        missing = {
            digest: path for path, digest in digests.items() if digest not in self._row_of_digest
        }
        if missing:
            self._compute(missing, progress or (lambda done, total, new: None))
        for path, digest in digests.items():
            self._row_of_path[path] = self._row_of_digest[digest]

    def rows(self, pictures: Sequence[Path]) -> list[int]:
        """Return the row of each prepared picture in the table of features."""
        return [self._row_of_path[path] for path in pictures]

    def take(self, rows: Sequence[int]) -> Tensor:
        """Return features of shape (len(rows), n_tokens, d) in half precision."""
        return self._table[torch.tensor(rows, dtype=torch.long)]

    @property
    def tokens(self) -> int:
        """How many image tokens a picture takes."""
        return self._table.shape[1]

    def digest(self) -> str:
        """Name what every prepared picture's features are, to the bit: 16 hex digits."""
        prepared = {*self._row_of_path.values()}
        names = sorted(name for name, row in self._row_of_digest.items() if row in prepared)
        said = hashlib.sha256("".join(names).encode())
        said.update(self.take([self._row_of_digest[name] for name in names]).numpy().tobytes())
        return said.hexdigest()[:16]

    @property
    def _table(self) -> Tensor:
        if self._features is None:
            raise DataError("no image features: call FeatureStore.prepare with the pictures first")
        return self._features

    def _read(self, wanted: set[str]) -> None:
        for file in sorted(self.folder.glob(f"{READING}-*.safetensors")):
            try:
                content = load_tensors(file)
                digests = [bytes(row).hex() for row in content["digests"].numpy()]
                whole = len(content["features"]) == len(digests)
            except (RunDirError, KeyError, TypeError):  # a damaged file is computed again
                continue
            if whole and wanted.intersection(digests):
                self._append(digests, content["features"])

    def _compute(self, missing: dict[str, Path], progress: ProgressCall) -> None:
        digests, paths = list(missing), list(missing.values())
        parts = []
        for start in range(0, len(paths), self._batch_size):
            batch = paths[start : start + self._batch_size]
            full = [*batch, *[batch[-1]] * (self._batch_size - len(batch))]
            part = self._encode(full)[: len(batch)].to("cpu", torch.float16)
            if not torch.isfinite(part).all():
                raise DataError(
                    f"the image features of {paths[start]} (or one of the next "
                    f"{len(part) - 1} pictures) do not fit half precision; is the backbone sound?"
                )
            parts.append(part)
            progress(start + len(part), len(paths), len(part))
        features = torch.cat(parts)
        self._append(digests, features)
        keys = torch.tensor([list(bytes.fromhex(digest)) for digest in digests], dtype=torch.uint8)
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
        kept = {"features": features, "digests": keys}
        save_tensors(kept, self.folder / f"{READING}-{name}.safetensors")

    def _append(self, digests: Sequence[str], features: Tensor) -> None:
        fresh = [i for i, digest in enumerate(digests) if digest not in self._row_of_digest]
        start = 0 if self._features is None else len(self._features)
        for offset, i in enumerate(fresh):
            self._row_of_digest[digests[i]] = start + offset
        kept = features if len(fresh) == len(digests) else features[fresh]
        self._features = kept if self._features is None else torch.cat([self._features, kept])


def _digest(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the picture {path}: {why(error)}") from error
