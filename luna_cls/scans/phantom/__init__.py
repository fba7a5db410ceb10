"""Synthetic chest CTs with nodules and look-alikes, in the layout of LUNA16."""

from luna_cls.scans.phantom.acquisition import Acquisition
from luna_cls.scans.phantom.tree import write_phantom

__all__ = ["Acquisition", "write_phantom"]
