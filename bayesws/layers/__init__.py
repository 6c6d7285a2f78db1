"""Where weights are shared: modules with torch's own signatures that declare their pathways."""

from bayesws.layers import plain  # registers what torch's own layers declare
from bayesws.layers.anchors import Anchors2d
from bayesws.layers.branches import Branches
from bayesws.layers.cache import Deriving, computed_once
from bayesws.layers.change_group import ChangeGroup
from bayesws.layers.contract import (
    Declaration,
    Joint,
    Layer,
    Pathway,
    Status,
    Structure,
    Within,
    declarations,
    declare,
    layers_of,
    named_pathways,
    structure,
)
from bayesws.layers.conv import WSConv2d, WSConv3d, WSLiftConv2d, WSLiftConv3d
from bayesws.layers.convert import Conversion, share, sharing_plan
from bayesws.layers.export import harden
from bayesws.layers.factored import FactoredLinear2d, GroupedLinear, Offset2d
from bayesws.layers.fold_group import FoldGroup
from bayesws.layers.group_conv import GroupConv2d
from bayesws.layers.group_head import GroupHead
from bayesws.layers.identify import Identified, Match, identify_group, identify_groups
from bayesws.layers.linear import WSLinear
from bayesws.layers.linear2d import Linear2d
from bayesws.layers.sharing_settings import Sharing
from bayesws.layers.sparse import SparseConv2d, SparseLinear2d
from bayesws.layers.stack import RepresentationStack
from bayesws.layers.subsample import Align2d, Subsample2d
from bayesws.layers.turns import PoolGroup, StackTurns
from bayesws.layers.weight_sharing import WeightSharing

__all__ = [
    "Align2d",
    "Anchors2d",
    "Branches",
    "ChangeGroup",
    "Conversion",
    "Declaration",
    "Deriving",
    "FactoredLinear2d",
    "FoldGroup",
    "GroupConv2d",
    "GroupHead",
    "GroupedLinear",
    "Identified",
    "Joint",
    "Layer",
    "Linear2d",
    "Match",
    "Offset2d",
    "Pathway",
    "PoolGroup",
    "RepresentationStack",
    "Sharing",
    "SparseConv2d",
    "SparseLinear2d",
    "StackTurns",
    "Status",
    "Structure",
    "Subsample2d",
    "WSConv2d",
    "WSConv3d",
    "WSLiftConv2d",
    "WSLiftConv3d",
    "WSLinear",
    "WeightSharing",
    "Within",
    "computed_once",
    "declarations",
    "declare",
    "harden",
    "identify_group",
    "identify_groups",
    "layers_of",
    "named_pathways",
    "plain",
    "share",
    "sharing_plan",
    "structure",
]
