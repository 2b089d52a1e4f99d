"""How much memory a run needs, before anything is downloaded or started."""

from telechat.train.plan.predict import predict
from telechat.train.plan.request import ROW_NAMES, Plan, PlanRequest, Row

__all__ = ["ROW_NAMES", "Plan", "PlanRequest", "Row", "predict"]
