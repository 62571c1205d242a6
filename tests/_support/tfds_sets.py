"""Writes small TFDS sets, as array_record or tfrecord, without TensorFlow."""

from __future__ import annotations

import io
import json
import pathlib

import numpy as np

from experiments.data import tfds_records

CORE = "tensorflow_datasets.core.features."
NUMBER = {"shape": {}, "dtype": "int64", "encoding": "none"}


def image_feature(shape=(8, 8, 3), dtype="uint8"):
    """Describe an image feature; a None in the shape is a side that differs."""
    sides = ["-1" if n is None else str(n) for n in shape]
    described = {"shape": {"dimensions": sides}, "dtype": dtype, "encodingFormat": "png"}
    return {"pythonClassName": f"{CORE}image_feature.Image", "image": described}


def label_feature(classes=3):
    """Describe a class label."""
    described = {"numClasses": str(classes)}
    return {
        "pythonClassName": f"{CORE}class_label_feature.ClassLabel",
        "classLabel": described,
    }


def number_feature():
    """Describe a plain integer."""
    return {"pythonClassName": f"{CORE}tensor_feature.Tensor", "tensor": NUMBER}


def png(pixels):
    """Encode an image as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def images(count, shape=(8, 8, 3), classes=3, seed=0):
    """Draw noisy images whose colour or brightness tells the class; return pairs."""
    draw = np.random.RandomState(seed)
    labels = np.arange(count) % classes
    draw.shuffle(labels)
    pairs = []
    for label in labels:
        pixels = draw.randint(0, 120, shape)
        pixels[..., label % shape[2]] += 100 if shape[2] > 1 else 40 * label
        pairs.append((np.clip(pixels, 0, 255).astype(np.uint8), int(label)))
    return pairs


def serialized(pair):
    """Encode an image, or bytes in its place, and a label as TFDS stores them."""
    from tensorflow_datasets.proto import tf_example_pb2

    image, label = pair
    example = tf_example_pb2.Example()
    encoded = image if isinstance(image, bytes) else png(image)
    example.features.feature["image"].bytes_list.value.append(encoded)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def write_records(path, blocks, file_format):
    """Write a file of records."""
    if file_format == "array_record":
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for block in blocks:
            writer.write(block)
        writer.close()
        return
    with open(path, "wb") as file:
        for block in blocks:
            length = len(block).to_bytes(8, "little")
            sums = tfds_records.masked_crc([length, block]).astype("<u4")
            file.write(length + sums[0].tobytes() + block + sums[1].tobytes())


def write_set(
    root: pathlib.Path,
    splits,
    *,
    name="patches",
    config="",
    version="1.0.0",
    file_format="array_record",
    features=None,
    shards=1,
    supervised=True,
):
    """Write a set whose splits are lists of pairs of image and label; return its folder.

    `features` replaces the description of {"image": 8 x 8 x 3, "label": 3 classes}.
    """
    folder = pathlib.Path(root) / name / config / version
    folder.mkdir(parents=True)
    described = []
    for split, pairs in splits.items():
        parts = np.array_split(np.arange(len(pairs)), shards)
        blocks = [[serialized(pairs[i]) for i in part] for part in parts]
        for i, block in enumerate(blocks):
            end = f"{i:05d}-of-{shards:05d}"
            write_records(folder / f"{name}-{split}.{file_format}-{end}", block, file_format)
        described.append(
            {
                "name": split,
                "numBytes": str(sum(len(b) for block in blocks for b in block)),
                "shardLengths": [str(len(block)) for block in blocks],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": described}
    if config:
        info["configName"] = config
    if supervised:
        info["supervisedKeys"] = {
            "tuple": {"items": [{"featureKey": k} for k in ("image", "label")]}
        }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = features or {"image": image_feature(), "label": label_feature()}
    top = {
        "pythonClassName": f"{CORE}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(top))
    return folder
