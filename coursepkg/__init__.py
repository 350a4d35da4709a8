"""Every implementation that the book uses, one module a concept.

The package hands out modules, not functions: ``from coursepkg import bayes_linear`` and then
``bayes_linear.posterior(...)``. Importing it loads torch and numpy and nothing heavier; what
draws (``plotting``) or loads a data set of another package is imported where it is used.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
