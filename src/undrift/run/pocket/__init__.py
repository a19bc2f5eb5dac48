"""The pocket backbone: a small vision-language model that ships with the package."""
