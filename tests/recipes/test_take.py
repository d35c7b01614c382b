"""A user's own files: what is read, what stays here, what is refused, and DICOM both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGBaseline8Bit

from inferpool.protocol.errors import BadRequest, InferpoolError, Refused
from inferpool.recipes import dicom, registry
from inferpool.recipes.kit import audit
from inferpool.recipes.kit.case import TEXT, Case, Recipe
from inferpool.recipes.kit.data import heldout
from inferpool.recipes.kit.deciding import Desk
from inferpool.recipes.kit.scorer import EngineScorer, request_body
from inferpool.recipes.kit.take import choose, example, leaks, suffixes, take

WHOLE = [(recipe, case) for recipe in registry.all() if recipe.whole for case in recipe.cases]
XRAY = next(case for _, case in WHOLE if case.model == "chest-xray")


@pytest.mark.parametrize(("recipe", "case"), WHOLE, ids=[case.model for _, case in WHOLE])
def test_an_example_is_read_back_and_nobody_leaves(
    recipe: Recipe, case: Case, engine: EngineScorer, tmp_path: Path
) -> None:
    for path in example(case, tmp_path, 2):
        if path.suffix in suffixes(case):
            assert choose(recipe, path, case.model) is case
            for item in take(case, path):
                assert item.identifiers
                sent = request_body(case.input, item.row)
                assert leaks(sent, item.identifiers) == []
                assert engine.infer(case.model, case.input, item.row)[case.output].shape[0] == 1


def test_a_leak_is_seen() -> None:
    row = np.array([["dear erika mustermann of example org"]], dtype=object)
    sent = request_body(TEXT, row)
    assert leaks(sent, {"From": "Erika Mustermann", "no": "12"}) == ["From"]


def test_names_of_a_mails_people_are_taken_out_of_its_text(tmp_path: Path) -> None:
    case = registry.load("spam").cases[0]
    mail = tmp_path / "a.eml"
    mail.write_text("From: Erika Muster <e@example.org>\nSubject: Hello\n\nYours, Erika at home\n")
    (item,) = take(case, mail)
    assert item.row[0, 0] == "hello yours at home"
    assert set(item.identifiers) == {"From"}
    mail.write_text("From: Erika <e@example.org>\n\nErika\n")
    with pytest.raises(BadRequest, match="no word"):
        take(case, mail)


def test_orders_know_their_customers_orders_before(engine: EngineScorer, tmp_path: Path) -> None:
    case = registry.load("fraud").cases[0]
    (path,) = example(case, tmp_path, 4)
    items = take(case, path)
    before = [item.row[0, case.fields.index("orders before")] for item in items]
    assert before == [0, 1, 2, 3, 4]
    usual = [item.row[0, case.fields.index("value to usual value")] for item in items]
    assert usual[1:4] == [1, 1, 1]
    assert usual[4] > 20
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    with pytest.raises(BadRequest, match="order of their time"):
        take(case, path)


def test_a_table_without_a_field_names_it(tmp_path: Path) -> None:
    case = registry.load("crm").cases[0]
    path = tmp_path / "a.csv"
    path.write_text("name,tenure\nErika,3\n")
    with pytest.raises(BadRequest, match="MonthlyCharges"):
        take(case, path)
    path.write_text("name\n")
    with pytest.raises(BadRequest, match="0 cases"):
        take(case, path)


def test_a_file_that_several_cases_read_needs_a_model(tmp_path: Path) -> None:
    recipe = registry.load("healthcare")
    with pytest.raises(InferpoolError, match="--model"):
        choose(recipe, tmp_path / "a.csv", None)
    assert choose(recipe, tmp_path / "a.csv", "heart-risk").model == "heart-risk"


def test_a_picture_is_read_as_it_was_made(tmp_path: Path) -> None:
    sample = heldout(XRAY.model)
    (path, *_) = example(XRAY, tmp_path, 2)
    (item,) = take(XRAY, path)
    assert np.array_equal(item.row[0], sample["x"][0])
    assert item.identifiers["PatientName"] == "Mustermann^Erika"
    assert {"PatientID", "PatientBirthDate", "StudyInstanceUID"} <= set(item.identifiers)


def test_large_inverted_deep_pictures_come_out_the_same(tmp_path: Path) -> None:
    sample = heldout(XRAY.model)["x"][0].reshape(28, 28)
    (path, *_) = example(XRAY, tmp_path, 2)
    picture = pydicom.dcmread(path)
    large = np.kron(4095 - np.round(sample * 4095 / 255), np.ones((10, 10))).astype(np.uint16)
    wide = np.pad(large, ((0, 0), (40, 40)), constant_values=17)  # cropped away again
    picture.Rows, picture.Columns = wide.shape
    picture.BitsAllocated, picture.BitsStored, picture.HighBit = 16, 12, 11
    picture.PhotometricInterpretation = "MONOCHROME1"
    picture.WindowCenter, picture.WindowWidth = 4095 / 2, 4095
    picture.PixelData = wide.tobytes()
    picture.save_as(path)
    (item,) = take(XRAY, path)
    assert np.abs(item.row[0] - sample.ravel()).max() <= 1


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    (path, *_) = example(XRAY, tmp_path, 2)
    picture = pydicom.dcmread(path)
    picture.Rows = 9_000
    picture.save_as(tmp_path / "large.dcm")
    picture.Rows = 28
    picture.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    picture.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8"])
    picture["PixelData"].is_undefined_length = True
    picture.save_as(tmp_path / "small.dcm")
    (tmp_path / "text.dcm").write_text("no picture")
    for name, why in (("large", "9000"), ("small", "compressed"), ("text", "DICOM")):
        with pytest.raises(BadRequest, match=why):
            take(XRAY, tmp_path / f"{name}.dcm")


def test_a_report_holds_the_decision_and_makes_it_again(
    engine: EngineScorer, tmp_path: Path
) -> None:
    recipe = registry.load("healthcare")
    (path, *_) = example(XRAY, tmp_path, 2)
    desk = Desk(recipe, XRAY, engine, engine, tmp_path)
    (decision,), (record,), _ = desk.decide(take(XRAY, path), heldout(XRAY.model))
    file = dicom.write(path, record, tmp_path / "report.dcm")
    found, picture = pydicom.dcmread(file), pydicom.dcmread(path)
    assert found.PatientID == picture.PatientID
    assert found.StudyInstanceUID == picture.StudyInstanceUID
    assert found.Modality == "SR"
    assert found.VerificationFlag == "UNVERIFIED"
    image, finding, number, *_ = found.ContentSequence
    reference = image.ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == picture.SOPInstanceUID
    assert finding.TextValue == decision.verdict
    assert number.MeasuredValueSequence[0].NumericValue == pytest.approx(decision.score, rel=1e-5)
    assert dicom.audit_of(file) == record
    assert audit.replay(dicom.audit_of(file), engine).bitwise
    # The record names what stayed here and holds none of it.
    assert "PatientName" in record["left_out"]
    assert leaks(json.dumps(record).encode(), take(XRAY, path)[0].identifiers) == []
    with pytest.raises(Refused, match="no report"):
        dicom.audit_of(path)
