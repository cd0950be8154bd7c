"""The native API, under /api/v1."""

from fastapi import APIRouter

from limner.server.problems import native_error as error_response

from . import (
    accounts,
    albums,
    audit,
    completions,
    control,
    detection,
    drafts,
    erasure,
    estimates,
    events,
    images,
    imports,
    jobs,
    library,
    models,
    moderation,
    notices,
    prompts,
    search,
    session,
    uploads,
)

PREFIX = "/api/v1"

router = APIRouter(prefix=PREFIX)
# The library and search come before the images: their paths are no images of such ids.
for part in (
    *(
        jobs,
        library,
        search,
        images,
        albums,
        uploads,
        imports,
        detection,
        estimates,
        prompts,
        completions,
        control,
        drafts,
        models,
    ),
    *(events, session, accounts, audit, moderation, notices, erasure),
):
    router.include_router(part.router)

BODIES = (
    jobs.NewJobs,
    jobs.JobChange,
    jobs.JobsChange,
    jobs.Cancellation,
    jobs.MoreJobs,
    library.ImageMarks,
    albums.AlbumBody,
    albums.AlbumChange,
    estimates.EstimateBody,
    prompts.PromptBody,
    control.ControlPreviewBody,
    search.TasteView,
    accounts.NewKey,
    accounts.NewAccount,
    accounts.AccountChange,
    session.NewSession,
    moderation.NewDecision,
    moderation.Reversal,
)
"""Models of bodies that routes read themselves, for the OpenAPI description."""

__all__ = ["BODIES", "PREFIX", "error_response", "router"]
