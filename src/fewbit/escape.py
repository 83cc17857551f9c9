"""Text from files, made safe for where it is printed: a terminal, a comment of C, an identifier of C. HTML: jinja2's autoescape.

A model's names are its author's. Unescaped they can close a comment and add code to firmware, move a terminal's cursor over
what was printed before, or reorder a line for whoever reads it (CVE-2021-42574).
"""

import re

# What a C or C++ compiler, <stdint.h>, an Arduino core or the generated function itself gives another meaning.
_LANGUAGE = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl complex concept const const_cast
consteval constexpr constinit continue decltype default delete do double dynamic_cast else enum explicit export extern false
float for friend goto if imaginary inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
protected public register reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast
struct switch template this thread_local throw true try typedef typeid typename typeof union unsigned using virtual void
volatile wchar_t while xor xor_eq main null unix linux i386 abs low high min max round bit binary byte word boolean interrupts
delay yield setup loop state action got i x y
"""
# The first parts of names that the generated file makes: its kernels, constants, buffers and tests.
_MADE = """
add argmax cast conv copy dequantize dot2 dot4 dot8 dsp float linear lookup move multiply quantize rescale table values runs scale
weight bias m shift segments geometry start test u8 i8 u16 i16 i32 i64 f32 f64 fewbit
"""
RESERVED, MADE = set(_LANGUAGE.split()), set(_MADE.split())


def printable(text: str) -> str:
    """One line whose every character is seen as it is: control characters, line ends and invisible ones as their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def c_comment(text: str) -> str:
    """The same inside a /* */ comment: nothing in it can end the comment, begin one, or splice lines."""
    line = printable(text).replace("\\", "|")
    while "*/" in line or "/*" in line or "??" in line:
        line = line.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
    return line.rstrip("*") + " " * line.endswith("*")


def c_identifier(text: str, taken: set[str]) -> str:
    """A parameter's or field's name of C and C++ that nothing else in the generated file has; taken: others, in lower case.

    Letters of ASCII alone; in_ before what is a word of the language, of <stdint.h> or of the file's own; then _2, _3, …
    """
    word = re.sub(r"\W", "_", text, flags=re.ASCII) or "input"
    lower = word.lower()
    first = lower.split("_")[0]
    ours = first in MADE or re.fullmatch(r"action\d*|got\d+|u?int\w*_t", lower)
    if not word[0].isalpha() or lower in RESERVED or ours or word.isupper():
        word = f"in_{word}"
    unique, count = word, 2
    while unique.lower() in taken:
        unique, count = f"{word}_{count}", count + 1
    return unique
