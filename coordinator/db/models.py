"""All tables, by whatever name they are in. Migrations build them; a test compares the two."""

from fedcybgd.coordinator.db.tables.agents import Agent, EnrolmentToken, Readiness, SpentSignature
from fedcybgd.coordinator.db.tables.audit import Audit
from fedcybgd.coordinator.db.tables.coordinator import Event, Instance, Login, Operator, Replica, SigningKey
from fedcybgd.coordinator.db.tables.history import BlockVersion
from fedcybgd.coordinator.db.tables.jobs import Job
from fedcybgd.coordinator.db.tables.ledgers import Exposure, Traffic, TrafficTotal
from fedcybgd.coordinator.db.tables.measured import Evaluation, Fidelity
from fedcybgd.coordinator.db.tables.rounds import Assignment, Round, StoredManifest
from fedcybgd.coordinator.db.tables.runs import Block, HeldOut, Model, ModelUpload, Run
from fedcybgd.coordinator.db.tables.shards import EncodedShard, Garbage, Patch
from fedcybgd.coordinator.db.tables.uploads import StoredUpload, UploadPiece
from fedcybgd.coordinator.db.tables.webhook import Webhook

__all__ = [
    "Agent",
    "Assignment",
    "Audit",
    "Block",
    "BlockVersion",
    "EncodedShard",
    "EnrolmentToken",
    "Evaluation",
    "Event",
    "Exposure",
    "Fidelity",
    "Garbage",
    "HeldOut",
    "Instance",
    "Job",
    "Login",
    "Model",
    "ModelUpload",
    "Operator",
    "Patch",
    "Readiness",
    "Replica",
    "Round",
    "Run",
    "SigningKey",
    "SpentSignature",
    "StoredManifest",
    "StoredUpload",
    "Traffic",
    "TrafficTotal",
    "UploadPiece",
    "Webhook",
]
