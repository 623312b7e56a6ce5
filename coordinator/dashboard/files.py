"""What pages load: files of this package, and Swagger UI as an installed package has it. Nothing comes from elsewhere."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.templating import Jinja2Templates

from fedcybgd.coordinator.errors import NotFound

router = APIRouter(include_in_schema=False)
HERE = Path(__file__).parent
templates = Jinja2Templates(HERE / "templates")
OURS = {"admin.css": "text/css", "admin.js": "text/javascript", "docs.css": "text/css", "docs.js": "text/javascript"}
SWAGGER = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def swagger_files() -> Path:
    """Where they lie; the package itself is not imported."""
    found = find_spec("fastapi_offline")
    assert found is not None, "the package fastapi-offline is missing: pip install '.[coordinator]'"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "static"


@router.get("/")
async def root() -> Response:
    """Whoever opens the address of the coordinator in a browser means its pages."""
    return RedirectResponse("/admin")


@router.get("/docs")
async def docs(request: Request) -> Response:
    return templates.TemplateResponse(request, "docs.html", {})


@router.get("/admin/files/{name}")
async def ours(name: str) -> Response:
    return _file(HERE / "static", name, OURS)


@router.get("/docs/files/{name}")
async def swagger(name: str) -> Response:
    return _file(swagger_files(), name, SWAGGER)


def _file(folder: Path, name: str, known: dict[str, str]) -> Response:
    if name not in known:
        raise NotFound(f"there is no file {name!r} here")
    return FileResponse(folder / name, media_type=known[name])
