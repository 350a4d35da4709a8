"""Every implementation that the book uses, one module a concept.

The package hands out modules, not functions: ``from coursepkg import bayes_linear`` and then
``bayes_linear.posterior(...)``. Modules load torch and numpy and nothing heavier; what draws
(``plotting``, ``page``) or reads a data set of another package loads it where it is used.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
