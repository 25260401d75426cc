# overlays/s3, with two coordinators and three of etcd, from nothing to an answer: docs/kubernetes.md, "With a bucket". The store is
# SeaweedFS, outside of the cluster. Run by tests/e2e/deploy/pages.rs, in namespaces and with the stand-ins there.
kind create cluster
mkdir store
cat > s3.json <<'END'
{"identities": [{"name": "test", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin", "Read", "Write", "List"]}]}
END
# Its sockets in /tmp are named by these ports.
grpc=$((20000 + RANDOM % 10000))
"$WEED" server -dir=store -ip=10.244.0.1 -ip.bind=10.244.0.1 -filer -s3 -s3.config=s3.json -s3.autoCreateBucket=false -s3.iam=false \
  -master.port.grpc=$grpc -volume.port.grpc=$((grpc + 1)) -filer.port.grpc=$((grpc + 2)) -s3.port.grpc=$((grpc + 3)) \
  -s3.port=8333 -volume.max=100 -master.volumeSizeLimitMB=64 -master.volumePreallocate=false > store.log 2>&1 &
until curl -sf -X PUT --data-binary up http://10.244.0.1:8888/up > put.txt; do sleep 0.2; done
curl -sf -X POST http://10.244.0.1:8888/buckets/bucket/

kubectl create namespace elastic
elastic certs cluster certs --kubernetes elastic
kubectl apply -f certs/secrets.yaml
kubectl -n elastic create secret generic elastic-s3 --from-literal=ELASTIC_REGISTRY=s3://bucket/registry \
  --from-literal=AWS_ACCESS_KEY_ID=key --from-literal=AWS_SECRET_ACCESS_KEY=secret --from-literal=AWS_REGION=us-east-1 \
  --from-literal=AWS_ENDPOINT_URL=http://10.244.0.1:8333 --from-literal=AWS_ALLOW_HTTP=true
kubectl apply -k deploy/overlays/s3
kubectl -n elastic rollout status statefulset/elastic-etcd
kubectl -n elastic rollout status statefulset/elastic-coordinator
kubectl -n elastic rollout status deployment/elastic-agent

# One of the two leads; whoever asks the other is sent on by a name that means nothing outside of the cluster.
kubectl -n elastic port-forward pod/elastic-coordinator-0 7070 &
kubectl -n elastic port-forward pod/elastic-coordinator-1 7170:7070 &
until (: < /dev/tcp/localhost/7070 && : < /dev/tcp/localhost/7170) 2> /dev/null; do sleep 0.2; done
elastic submit examples/digits/job.toml --set checkpoint.dir=s3://bucket/states --coordinator https://localhost:7070,https://localhost:7170 \
  --tls-ca certs/ca.pem --token-file certs/token --json > run.json
RUN=$(sed 's/.*"job":"\([^"]*\)".*/\1/' run.json)
kubectl -n elastic set env cronjob/elastic-export RUN=s3://bucket/states/$RUN
kubectl -n elastic create job export-1 --from=cronjob/elastic-export
kubectl -n elastic wait --for=condition=complete job/export-1 --timeout=300s
kubectl -n elastic rollout status deployment/elastic-serving
kubectl -n elastic port-forward service/elastic-serving 8000 &
curl -sf -w '\n' --retry 30 --retry-connrefused --retry-delay 1 --cacert certs/ca.pem https://localhost:8000/v2/health/ready
curl -sf -w '\n' --cacert certs/ca.pem -H "Authorization: Bearer $(cat certs/api-keys)" https://localhost:8000/v1/models/digits:predict -d @examples/digits/request.json
# It would take 10 s to end by itself.
kill -9 %1
rm -f /tmp/seaweedfs-*-grpc-$grpc.sock /tmp/seaweedfs-*-grpc-$((grpc + 1)).sock /tmp/seaweedfs-*-grpc-$((grpc + 2)).sock /tmp/seaweedfs-*-grpc-$((grpc + 3)).sock
