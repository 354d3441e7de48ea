# Decodes latents to a PNG. Once, in the repository's root, what examples/README.md says under Python; then, with
# `latentgate serve` running:  target/venv/bin/python examples/python/minimal.py
import grpc
import numpy as np
from latentgate.v1 import latents_pb2 as pb, latents_pb2_grpc

latents = np.random.default_rng(0).standard_normal((1, 4, 64, 64)).astype("<f4")
spec = pb.DecodeSpec(model="builtin", output=pb.Output(png=pb.Output.Png()))
spec.latents.CopyFrom(pb.TensorSpec(dtype=pb.DTYPE_F32, shape=latents.shape))
stub = latents_pb2_grpc.LatentsStub(grpc.insecure_channel("127.0.0.1:8790"))
answer = list(stub.Decode(iter([pb.DecodeRequest(spec=spec, data=latents.tobytes())])))
with open("decoded.png", "wb") as file:
    file.writelines(event.chunk for event in answer if event.WhichOneof("event") == "chunk")
trailer = answer[-1].trailer
print(pb.Source.Name(trailer.source), f"{trailer.timings.total_us / 1000:.1f} ms", "-> decoded.png")
