"""Albums of the library."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from limner.server.auth import Manager, Reader
from limner.server.bodies import body_schema, read_body
from limner.server.state import in_thread, state_of
from limner.service.ledger.albums import Album

from .access import AccountQuery, listed_account, owner_of
from .library import MAX_NAMES
from .views import ImageName, Seconds, checked_id

router = APIRouter(tags=["images"])

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


class AlbumBody(BaseModel):
    """An album to be made or renamed."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Its name, which no other album of the account has.")


class AlbumChange(BaseModel):
    """Images that come into an album or leave it."""

    model_config = ConfigDict(extra="forbid")

    add: list[ImageName] = Field(
        default=[], max_length=MAX_NAMES, description="Ids or numbers of images that it is to have."
    )
    remove: list[ImageName] = Field(
        default=[], max_length=MAX_NAMES, description="Ids or numbers of images that leave it."
    )


class AlbumView(BaseModel):
    """An album. Images in the trash do not count."""

    id: str = Field(description="Id of the album.")
    name: str = Field(description="Its name.")
    count: int = Field(description="Number of its images.")
    cover: int | None = Field(default=None, description="Number of its newest image; null without any.")
    created_at: Seconds
    updated_at: Seconds


class ChangedAlbumView(AlbumView):
    """An album whose images were changed."""

    unknown: list[str] = Field(description="Those of the ids that are no image's any more.")


@router.get("/albums")
async def list_albums(request: Request, caller: Reader, account: AccountQuery = None) -> list[AlbumView]:
    """Albums, the one that was changed last first."""
    owner = listed_account(caller, account)
    return [_view(one) for one in await in_thread(state_of(request).ledger.list_albums, owner)]


@router.post("/albums", status_code=201, openapi_extra=body_schema(AlbumBody), response_model=AlbumView)
async def create_album(request: Request, caller: Manager) -> AlbumView:
    """Make an album. 409 if there is one of this name."""
    server = state_of(request)
    body = await read_body(request, AlbumBody)
    made = await in_thread(server.ledger.create_album, caller.account.id, body.name)
    server.hub.changed()
    return _view(made)


@router.patch("/albums/{album_id}", openapi_extra=body_schema(AlbumBody), response_model=AlbumView)
async def rename_album(request: Request, caller: Manager, album_id: str) -> AlbumView:
    """Give an album another name."""
    server = state_of(request)
    body = await read_body(request, AlbumBody)
    renamed = await in_thread(
        server.ledger.rename_album, checked_id(album_id, "album"), body.name, account_id=owner_of(caller)
    )
    server.hub.changed()
    return _view(renamed)


@router.delete("/albums/{album_id}", status_code=204)
async def delete_album(request: Request, caller: Manager, album_id: str) -> Response:
    """Delete an album. Its images stay."""
    server = state_of(request)
    await in_thread(server.ledger.delete_album, checked_id(album_id, "album"), account_id=owner_of(caller))
    server.hub.changed()
    return Response(status_code=204)


@router.post(
    "/albums/{album_id}/images", openapi_extra=body_schema(AlbumChange), response_model=ChangedAlbumView
)
async def change_album(request: Request, caller: Manager, album_id: str) -> ChangedAlbumView:
    """Put images into an album, or take them out of it."""
    server = state_of(request)
    body = await read_body(request, AlbumChange)
    album, unknown = await in_thread(
        server.ledger.change_album,
        checked_id(album_id, "album"),
        account_id=owner_of(caller),
        add=body.add,
        remove=body.remove,
    )
    server.hub.changed()
    return ChangedAlbumView(**_view(album).model_dump(), unknown=list(unknown))


def _view(album: Album) -> AlbumView:
    values = asdict(album)
    return AlbumView(**{name: values[name] for name in AlbumView.model_fields})
