"""DICOM in, DICOM SR out: a chest X-ray becomes pixels, a decision becomes a structured report.

Only pixels leave this process. The report carries the patient back, and the whole audit record, so
that the decision is made again from the report alone (`inferpool recipe replay REPORT.dcm`).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from inferpool.protocol.errors import Refused, Unavailable
from inferpool.recipes.kit.data import Array, Sample
from inferpool.recipes.kit.take import Taken
from inferpool.recipes.xray import SIDE

SIDE_MAX: Final = 8_192  # pixels
_ROOT: Final = "2.25."  # UIDs from UUIDs, without a registration
_SR: Final = "1.2.840.10008.5.1.4.1.1.88.33"  # Comprehensive SR Storage
_XRAY: Final = "1.2.840.10008.5.1.4.1.1.1.1"  # Digital X-Ray Image Storage, for presentation
_EXPLICIT: Final = "1.2.840.10008.1.2.1"
_OWN: Final = "99INFERPOOL"  # our coding scheme, where DICOM has no code
# What the report takes over from the picture, so that an archive files both under one patient.
_PATIENT: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# Value representations that name people, places, moments or numbers of things.
_IDENTIFYING: Final = ("PN", "UI", "DA", "TM", "DT", "LO", "SH", "ST", "LT", "UT", "AS", "AE")


def take(path: Path) -> list[Taken]:
    """One picture: its pixels for the model, and every element that may say whose it is."""
    dicom = _pydicom()
    try:
        found = dicom.dcmread(path)
    except (dicom.errors.InvalidDicomError, EOFError, AttributeError) as error:
        raise ValueError(f"it is no DICOM file: {error}") from error
    rows, columns = int(found.get("Rows", 0)), int(found.get("Columns", 0))
    if not (SIDE <= rows <= SIDE_MAX and SIDE <= columns <= SIDE_MAX):
        raise ValueError(f"{rows} x {columns} pixels; from {SIDE} to {SIDE_MAX} a side are read")
    if int(found.get("SamplesPerPixel", 1)) != 1 or int(found.get("NumberOfFrames", 1)) != 1:
        raise ValueError("one grey picture is read, not colours or frames")
    if found.file_meta.TransferSyntaxUID.is_compressed:
        raise ValueError("the pixels are compressed; store it uncompressed")
    return [Taken(pixels(found), _identifiers(found))]


def pixels(found: Any) -> Array:
    """The model's input [1, 784], 0 to 255: the middle square, averaged down, dark is air."""
    values = found.pixel_array.astype(np.float64)
    values = values * float(found.get("RescaleSlope", 1)) + float(found.get("RescaleIntercept", 0))
    side = min(values.shape)
    top, left = ((size - side) // 2 for size in values.shape)
    square = values[top : top + side, left : left + side]
    edges = np.linspace(0, side, SIDE + 1).astype(int)
    small = np.add.reduceat(np.add.reduceat(square, edges[:-1], axis=0), edges[:-1], axis=1)
    small = small / np.outer(np.diff(edges), np.diff(edges))
    low, high = _window(found, square)
    shown = np.clip((small - low) / max(1.0, high - low), 0, 1) * 255
    if found.get("PhotometricInterpretation") == "MONOCHROME1":
        shown = 255 - shown
    row: Array = np.round(shown).astype(np.float32).reshape(1, -1)
    return row


def _window(found: Any, square: Array) -> tuple[float, float]:
    """What is black and what is white: the picture's own window, else its bits or its extremes."""
    if "WindowWidth" in found and "WindowCenter" in found:
        middle, width = (np.ravel(found[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        return float(middle) - float(width) / 2, float(middle) + float(width) / 2
    if int(found.BitsStored) == 8:
        return 0.0, 255.0
    return float(square.min()), float(square.max())


def _identifiers(found: Any) -> dict[str, str]:
    return {
        element.keyword or f"{element.tag}": str(element.value)
        for element in found.iterall()
        if (element.VR in _IDENTIFYING or element.tag.is_private) and str(element.value or "")
    }


def report(source: Path, decision: dict[str, Any]) -> Any:
    """The decision as a Comprehensive SR data set that refers to the picture."""
    dicom = _pydicom()
    picture = dicom.dcmread(source, stop_before_pixels=True)
    made = dicom.dataset.Dataset()
    for keyword in _PATIENT:
        setattr(made, keyword, picture.get(keyword, ""))
    moment = _moment(decision["time_ms"])
    made.SOPClassUID, made.Modality = _SR, "SR"
    made.SOPInstanceUID = _uid(decision, "instance")
    made.SeriesInstanceUID = _uid(decision, "series")
    made.SeriesNumber, made.InstanceNumber = "990", "1"
    made.Manufacturer, made.SeriesDescription = "Inferpool", f"{decision['model']} (not verified)"
    made.ContentDate, made.ContentTime = moment
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "UNVERIFIED"
    made.ReferencedPerformedProcedureStepSequence = []
    made.PerformedProcedureCodeSequence = []
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    made.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging report")]
    made.ContentSequence = _content(picture, decision)
    made.file_meta = dicom.dataset.FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = _SR
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = _EXPLICIT
    return made


def _content(picture: Any, decision: dict[str, Any]) -> list[Any]:
    reasons = ", ".join(f"{r['field']} {r['effect']:+.3g}" for r in decision["reasons"])
    image = _item("IMAGE", _code("121112", "DCM", "Source of Measurement"))
    reference = _pydicom().dataset.Dataset()
    reference.ReferencedSOPClassUID = picture.SOPClassUID
    reference.ReferencedSOPInstanceUID = picture.SOPInstanceUID
    image.ReferencedSOPSequence = [reference]
    number = _item("NUM", _code("probability", _OWN, "Probability said by the model"))
    measured = _pydicom().dataset.Dataset()
    measured.NumericValue = f"{decision['score']:.6g}"
    measured.MeasurementUnitsCodeSequence = [_code("1", "UCUM", "no units")]
    number.MeasuredValueSequence = [measured]
    return [
        image,
        _text(_code("121071", "DCM", "Finding"), decision["verdict"]),
        number,
        _text(_code("reasons", _OWN, "What moved the score"), reasons or "nothing"),
        _text(_code("111001", "DCM", "Algorithm Name"), decision["model"]),
        _text(_code("111003", "DCM", "Algorithm Version"), decision["manifest"]),
        _text(_code("class", _OWN, "Engine class"), decision["class"]),
        _text(_code("node", _OWN, "Node that answered and signed"), decision["node"]),
        _text(_code("audit", _OWN, "Audit record"), orjson.dumps(decision).decode()),
    ]


def write(source: Path, decision: dict[str, Any], path: Path) -> Path:
    """Write the report of a decision about a picture."""
    report(source, decision).save_as(path, enforce_file_format=True)
    return path


def audit_of(path: Path) -> dict[str, Any]:
    """The audit record in a report. Raises `Refused(bad_encoding)` where there is none."""
    for item in _pydicom().dcmread(path).get("ContentSequence", []):
        if item.ConceptNameCodeSequence[0].CodeValue == "audit":
            found: dict[str, Any] = orjson.loads(item.TextValue)
            return found
    raise Refused(f"{path.name} is no report of a recipe", code="bad_encoding")


def example(sample: Sample, chosen: Array, folder: Path) -> list[Path]:
    """Held-out pictures as DICOM files of made-up patients."""
    paths = []
    for number, index in enumerate(chosen):
        made = _picture(sample["x"][index].reshape(SIDE, SIDE).astype(np.uint8), number)
        paths.append(folder / f"xray-{number + 1}.dcm")
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def _picture(shown: Array, number: int) -> Any:
    dicom = _pydicom()
    made = dicom.dataset.Dataset()
    made.PatientName, made.PatientID = "Mustermann^Erika", f"PAT-4711-{number}"
    made.PatientBirthDate, made.PatientSex = "20200229", "F"
    made.InstitutionName, made.ReferringPhysicianName = "Example Hospital", "Placebo^Paula"
    made.StudyDate, made.StudyTime, made.AccessionNumber = "20260105", "093000", f"ACC-{number:04}"
    made.StudyID, made.Modality = f"STUDY{number}", "DX"
    made.SOPClassUID = _XRAY
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(made, name, dicom.uid.generate_uid(_ROOT, [name, str(number)]))
    made.Rows, made.Columns = shown.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = shown.tobytes()
    made.file_meta = dicom.dataset.FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = _XRAY
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = _EXPLICIT
    return made


def _pydicom() -> Any:
    try:
        return importlib.import_module("pydicom")
    except ImportError as error:
        raise Unavailable(
            "DICOM needs pydicom: install inferpool[dicom]", code="engine_unavailable"
        ) from error


def _uid(decision: dict[str, Any], what: str) -> str:
    seed = [what, decision["input_sha256"], str(decision["time_ms"])]
    return str(_pydicom().uid.generate_uid(_ROOT, seed))


def _moment(time_ms: int) -> tuple[str, str]:
    text = str(np.datetime64(time_ms, "ms")).replace("-", "").replace(":", "")
    day, clock = text.split("T")
    return day, clock


def _code(value: str, scheme: str, meaning: str) -> Any:
    made = _pydicom().dataset.Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def _item(kind: str, name: Any) -> Any:
    made = _pydicom().dataset.Dataset()
    made.RelationshipType, made.ValueType = "CONTAINS", kind
    made.ConceptNameCodeSequence = [name]
    return made


def _text(name: Any, text: str) -> Any:
    made = _item("TEXT", name)
    made.TextValue = text
    return made
