# Trains and serves on a CPU:
#   docker build -t adaptax . && docker run -v "$PWD/photos:/app/photos" -v "$PWD/runs:/app/runs" adaptax \
#     python main.py --config=configs/finetune.py:photos/ --workdir=runs/photos
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/runs:/app/runs" -v "$PWD/photos:/app/photos" adaptax \
#     python -m deploy.serve runs/photos --host=0.0.0.0
FROM python:3.11-slim
WORKDIR /app
COPY requirements.txt requirements-deploy.txt ./
RUN pip install --no-cache-dir -r requirements-deploy.txt
COPY . .
CMD ["python", "main.py", "--config=configs/fixmatch.py"]
