"""LeanKV ops by backend: the byte layout of records, the block ring, and the attention over compressed pages.

Importable as ``leankv_kernels``; needs torch alone and imports neither sglang nor the package.
"""

from leankv_kernels.layout import HIGH, LOW, MID, PRUNED, TIERS, RecordLayout, Tier, TierCounts
from leankv_kernels.ops import Ops, available_backends, get_ops
from leankv_kernels.plan import Plan, build_plan
from leankv_kernels.raw import FullPages, RawPages
from leankv_kernels.ring import BlockRing
from leankv_kernels.static_plan import StaticPlan
from leankv_kernels.store import RecordStore
from leankv_kernels.tier_rule import TierRule

__all__ = [
    "HIGH",
    "LOW",
    "MID",
    "PRUNED",
    "TIERS",
    "BlockRing",
    "FullPages",
    "Ops",
    "Plan",
    "RawPages",
    "RecordLayout",
    "RecordStore",
    "StaticPlan",
    "Tier",
    "TierCounts",
    "TierRule",
    "available_backends",
    "build_plan",
    "get_ops",
]
