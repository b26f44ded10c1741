"""From printed source to a callable: variants, builds, the disk cache, launches, autograd, operators."""
