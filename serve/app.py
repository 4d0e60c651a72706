"""For a checkout: `serve run serve.app:build run=R`; the application is in the package."""

from raysys.cluster.serve_app import build as build
