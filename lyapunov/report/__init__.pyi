from ._read import read_report as read_report
from .html import to_html as to_html
from .json import to_json as to_json
from .latex import to_latex as to_latex
from .markdown import to_markdown as to_markdown
from .table import to_table as to_table
