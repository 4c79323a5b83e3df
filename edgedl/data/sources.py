"""Where data of one's own comes from, told by its name: a file, a folder, the Hugging Face hub, or a function."""

from __future__ import annotations

from pathlib import Path

from edgedl import plugins
from edgedl.core import DataError
from edgedl.data import files as data_files
from edgedl.data import given as data_given
from edgedl.data import hub as data_hub
from edgedl.data import images as data_images
from edgedl.data.images import Reading
from edgedl.data.records import Records
from edgedl.data.splits import PARTS, WHOLE

HUB = "hub:"


def read(source: str, config: str | None, how: Reading) -> dict[str, Records]:
    """The parts of a data set. Raises `DataError`, or `UsageError` for a function that cannot be imported."""
    if source.startswith(HUB):
        return data_hub.from_hub(source.removeprefix(HUB), config, how)
    path = Path(source)
    if path.is_dir():
        return of_folder(path, how)
    if not path.exists() and ":" in source and "/" not in source:
        return data_given.of_given(plugins.function(source), how, source)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return data_files.read(path)


def of_folder(folder: Path, how: Reading) -> dict[str, Records]:
    """A folder that `save_to_disk` made, of files train, validation and test, or of images. Raises `DataError`."""
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return data_hub.from_disk(folder, how)
    files = [file for file in sorted(folder.iterdir()) if data_files.is_part(file)]
    if files:
        parts = {PARTS[file.stem.lower()]: file for file in files}
        if len(parts) < len(files):
            raise DataError(f"{folder}: two files are the same part: {', '.join(file.name for file in files)}")
        return {name: data_files.whole(file) for name, file in parts.items()}
    inner = data_images.folders(folder)
    divided = [part for part in inner if part.name.lower() in PARTS]
    if not any(part.name.lower() in ("train", "training") for part in divided):
        return {WHOLE: data_images.of_folder(folder, how, None)}
    train = next(part for part in divided if PARTS[part.name.lower()] == "train")
    classes = tuple(entry.name for entry in data_images.folders(train))
    return {part.name: data_images.of_folder(part, how, classes) for part in divided}
