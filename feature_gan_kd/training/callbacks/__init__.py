"""Callbacks: progress, records, trackers, early stopping, and those of users."""

from feature_gan_kd.training.callbacks.build import build_callbacks as build_callbacks
from feature_gan_kd.training.callbacks.callback import Callback as Callback
from feature_gan_kd.training.callbacks.callback import check_callbacks as check_callbacks
from feature_gan_kd.training.callbacks.discriminator_monitor import DiscriminatorMonitor as DiscriminatorMonitor
from feature_gan_kd.training.callbacks.early_stopping import EarlyStopping as EarlyStopping
from feature_gan_kd.training.callbacks.json_lines import JsonLines as JsonLines
from feature_gan_kd.training.callbacks.json_lines import JsonPrinter as JsonPrinter
from feature_gan_kd.training.callbacks.json_lines import read_records as read_records
from feature_gan_kd.training.callbacks.progress import ProgressLine as ProgressLine
from feature_gan_kd.training.callbacks.trackers import Trackers as Trackers
from feature_gan_kd.training.callbacks.trackers import check_trackers as check_trackers
