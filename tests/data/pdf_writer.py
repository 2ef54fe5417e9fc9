"""Write minimal PDFs: pages of lines in Helvetica, with compressed content streams."""

from __future__ import annotations

import zlib


def write_pdf(pages: list[list[str]], *, is_encrypted: bool = False) -> bytes:
    """Return a PDF with the lines of each page.

    Args:
        pages: the lines of each page, in Latin-1; a page without lines shows only a drawn square,
            as a scan shows only an image.
        is_encrypted: whether opening it takes a password.
    """
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, lines in enumerate(pages):
        resources = "<< /Font << /F1 3 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources {resources} "
            f"/Contents {5 + 2 * number} 0 R >>".encode()
        )
        content = zlib.compress(_content(lines))
        head = f"<< /Length {len(content)} /Filter /FlateDecode >>\nstream\n".encode()
        objects.append(head + content + b"\nendstream")
    trailer = ""
    if is_encrypted:  # hashes that no password has
        objects.append(
            b"<< /Filter /Standard /V 1 /R 2 /Length 40 /P -4 /O <%s> /U <%s> >>"
            % (b"ab" * 32, b"cd" * 32)
        )
        trailer = f"/Encrypt {len(objects)} 0 R /ID [<{'00' * 16}> <{'00' * 16}>]"
    return _assemble(objects, trailer)


def _content(lines: list[str]) -> bytes:
    if not lines:
        return b"100 100 200 200 re f"
    shown = []
    for line in lines:
        escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        shown.append(f"({escaped}) Tj T*")
    return ("BT /F1 11 Tf 14 TL 50 790 Td\n" + "\n".join(shown) + "\nET").encode("cp1252")


def _assemble(objects: list[bytes], trailer: str) -> bytes:
    content = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, each in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n" % number + each + b"\nendobj\n"
    start = len(content)
    content += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    content += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    content += f"trailer\n<< /Size {size} /Root 1 0 R {trailer} >>\n".encode()
    return bytes(content + f"startxref\n{start}\n%%EOF\n".encode())
