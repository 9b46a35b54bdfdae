"""Title and text of a passage in one string, as dumps of Wikipedia and retrievers have it."""


def join_contents(title: str, text: str) -> str:
    """The title in quotes on the first line, the text after it."""
    return f'"{" ".join(title.split())}"\n{text}'


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text, from the form of `join_contents`; the quotes may be missing."""
    title, _, text = contents.partition("\n")
    return title.strip().removeprefix('"').removesuffix('"'), text
