"""Where weights are shared: modules with torch's own signatures that declare their pathways."""

from bayesws.layers import plain  # registers what torch's own layers declare
from bayesws.layers.base import Declaration, Pathway, declarations, declare, named_pathways, structure
from bayesws.layers.conv import WSConv2d, WSConv3d, WSLiftConv2d, WSLiftConv3d
from bayesws.layers.convert import Conversion, share, sharing_plan
from bayesws.layers.flat import Flat
from bayesws.layers.hardening import harden
from bayesws.layers.linear import WSLinear
from bayesws.layers.once import Deriving, computed_once
from bayesws.layers.regroup import Regroup
from bayesws.layers.stack import RepresentationStack
from bayesws.layers.weight_sharing import WeightSharing

__all__ = [
    "Conversion",
    "Declaration",
    "Deriving",
    "Flat",
    "Pathway",
    "Regroup",
    "RepresentationStack",
    "WSConv2d",
    "WSConv3d",
    "WSLiftConv2d",
    "WSLiftConv3d",
    "WSLinear",
    "WeightSharing",
    "computed_once",
    "declarations",
    "declare",
    "harden",
    "named_pathways",
    "plain",
    "share",
    "sharing_plan",
    "structure",
]
