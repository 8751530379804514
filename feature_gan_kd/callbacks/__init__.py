"""What happens beside the training: progress, records, trackers, early stopping, and what users add."""

from feature_gan_kd.callbacks.callback import Callback as Callback
from feature_gan_kd.callbacks.callback import check_callbacks as check_callbacks
from feature_gan_kd.callbacks.early_stopping import EarlyStopping as EarlyStopping
from feature_gan_kd.callbacks.json_lines import JsonLines as JsonLines
from feature_gan_kd.callbacks.json_lines import JsonPrinter as JsonPrinter
from feature_gan_kd.callbacks.json_lines import read_records as read_records
from feature_gan_kd.callbacks.listeners import listeners as listeners
from feature_gan_kd.callbacks.progress import ProgressLine as ProgressLine
from feature_gan_kd.callbacks.trackers import Trackers as Trackers
from feature_gan_kd.callbacks.trackers import check_trackers as check_trackers
from feature_gan_kd.callbacks.watch import DiscriminatorWatch as DiscriminatorWatch
