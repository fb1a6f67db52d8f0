from flask import Blueprint, request

from shop.tasks import export

exports = Blueprint("exports", __name__, url_prefix="/exports")


@exports.post("/")
def start():
    return {"id": export.delay(request.form.get("rows", type=int)).id}, 202


@exports.get("/<task_id>")
def look(task_id):
    return {"state": export.AsyncResult(task_id).state}
