"""Publishes models with config and card, in a folder or on the Hub, and reads them back."""

from feature_gan_kd.export.card import ExportFormat as ExportFormat
from feature_gan_kd.export.card import ModelCardInfo as ModelCardInfo
from feature_gan_kd.export.graph import GRAPH_FILES as GRAPH_FILES
from feature_gan_kd.export.graph import Graph as Graph
from feature_gan_kd.export.graph import load_graph as load_graph
from feature_gan_kd.export.graph import publish_graph as publish_graph
from feature_gan_kd.export.hub import push as push
from feature_gan_kd.export.timm_folder import RebuildError as RebuildError
from feature_gan_kd.export.timm_folder import has_same_weights as has_same_weights
from feature_gan_kd.export.timm_folder import load_published as load_published
from feature_gan_kd.export.timm_folder import publish as publish
from feature_gan_kd.export.timm_folder import publish_bare as publish_bare
from feature_gan_kd.export.timm_folder import read_config as read_config
from feature_gan_kd.export.timm_folder import rebuild_obstacle as rebuild_obstacle
