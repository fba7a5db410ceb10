"""The page of a comparison."""

from luna_cls.reports.blocks import Page


def comparison_page(folder, cubes) -> Page:
    raise NotImplementedError
