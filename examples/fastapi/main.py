from fastapi import FastAPI

from tasks import export

api = FastAPI()


@api.post("/exports", status_code=202)
def start(rows: int) -> dict[str, str]:
    return {"id": export.delay(rows).id}


@api.get("/exports/{task_id}")
def look(task_id: str) -> dict[str, str]:
    return {"state": export.AsyncResult(task_id).state}
