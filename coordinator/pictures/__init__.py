"""Pictures as SVG: numbers in, markup out."""
