// Has a latentgate make a PNG: of latents, or of a picture, there and back.
//
//	client picture.jpg OUTPUT.png [MODEL]            encode, then decode what came
//	client latents.safetensors OUTPUT.png [MODEL]    decode
//
// LATENTGATE_SERVER names the server (default http://127.0.0.1:8790), MODEL is `builtin` unless given. examples/README.md
// says what to install and how the package latentgate/v1 is made.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"lukechampine.com/blake3"

	pb "latentgate/v1"
)

const (
	// A message may have 4 MiB; the server's own chunks have 1.
	chunkBytes = 1 << 20
	// gRPC waits for ever unless it is told not to. A first decode of a large model on a CPU takes a while.
	timeout = 5 * time.Minute
)

// A stream of Decode or Encode, which differ in the types of their messages alone.
type exchange struct {
	send func(data []byte) error
	end  func() error
	next func() (event, error)
}

// What both kinds of response have in common. Other events, those of later versions too, are for people who wait:
// accepted, progress, preview.
type event interface {
	GetNeedData() *pb.NeedData
	GetHeader() *pb.Header
	GetChunk() []byte
	GetTrailer() *pb.Trailer
}

// A whole answer, proved by its digest.
type answer struct {
	header  *pb.Header
	trailer *pb.Trailer
	data    []byte
	sent    bool
}

func (a *answer) String() string {
	source := strings.TrimPrefix(a.trailer.Source.String(), "SOURCE_")
	took := float64(a.trailer.Timings.GetTotalUs()) / 1000
	sent := map[bool]string{true: "sent", false: "not sent"}[a.sent]
	return fmt.Sprintf("%s, %d bytes in %.1f ms, input %s", source, len(a.data), took, sent)
}

// Encode turns the bytes of a PNG, JPEG or WebP file into latents, scaled as the model's diffusion network has them.
func encode(ctx context.Context, client pb.LatentsClient, model string, picture []byte) (*answer, error) {
	stream, err := client.Encode(ctx)
	if err != nil {
		return nil, err
	}
	digest := blake3.Sum256(picture)
	image := &pb.EncodeSpec_Image{Length: uint64(len(picture))}
	spec := &pb.EncodeSpec{Model: model, Input: &pb.EncodeSpec_Image_{Image: image}, Digest: digest[:]}
	if err := stream.Send(&pb.EncodeRequest{Spec: spec}); err != nil && err != io.EOF {
		return nil, err
	}
	return ask(exchange{
		send: func(data []byte) error { return stream.Send(&pb.EncodeRequest{Data: data}) },
		end:  stream.CloseSend,
		next: func() (event, error) { return stream.Recv() },
	}, picture)
}

// Decode turns latents into a PNG file.
func decode(ctx context.Context, client pb.LatentsClient, model string, tensor *pb.TensorSpec, data []byte) (*answer, error) {
	stream, err := client.Decode(ctx)
	if err != nil {
		return nil, err
	}
	digest := blake3.Sum256(data)
	png := &pb.Output{Kind: &pb.Output_Png_{Png: &pb.Output_Png{}}}
	spec := &pb.DecodeSpec{Model: model, Latents: tensor, Output: png, Digest: digest[:]}
	if err := stream.Send(&pb.DecodeRequest{Spec: spec}); err != nil && err != io.EOF {
		return nil, err
	}
	return ask(exchange{
		send: func(data []byte) error { return stream.Send(&pb.DecodeRequest{Data: data}) },
		end:  stream.CloseSend,
		next: func() (event, error) { return stream.Recv() },
	}, data)
}

// The rest of an exchange whose spec, with the digest of the data, has been sent.
//
// What is cached comes at once, and the data never cross the wire; otherwise the server says `need_data`, which costs
// one round trip. Leave the digest out and send the first data with the spec where hits are rare.
func ask(stream exchange, data []byte) (*answer, error) {
	var got answer
	digest := blake3.New(32, nil)
	for {
		message, err := stream.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if message.GetNeedData() != nil {
			got.sent = true
			for rest := data; len(rest) > 0; {
				size := min(len(rest), chunkBytes)
				// io.EOF says that the call is over; the next Recv says why.
				if err := stream.send(rest[:size]); err != nil && err != io.EOF {
					return nil, err
				}
				rest = rest[size:]
			}
			stream.end()
		}
		if header := message.GetHeader(); header != nil {
			got.header = header
		}
		digest.Write(message.GetChunk())
		got.data = append(got.data, message.GetChunk()...)
		if trailer := message.GetTrailer(); trailer != nil {
			got.trailer = trailer
		}
	}
	if got.header == nil || got.trailer == nil || uint64(len(got.data)) != got.header.Length ||
		!bytes.Equal(digest.Sum(nil), got.trailer.Digest) {
		return nil, errors.New("the answer is not whole, or was damaged on its way; try again")
	}
	return &got, nil
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

// The only tensor of a file: its TensorSpec and bytes, which are laid out as the wire wants them.
func readSafetensors(path string) (*pb.TensorSpec, []byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	if len(raw) < 8 || binary.LittleEndian.Uint64(raw) > uint64(len(raw)-8) {
		return nil, nil, fmt.Errorf("%s is no safetensors file", path)
	}
	start := 8 + binary.LittleEndian.Uint64(raw)
	var table map[string]json.RawMessage
	if err := json.Unmarshal(raw[8:start], &table); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	delete(table, "__metadata__")
	if len(table) != 1 {
		return nil, nil, fmt.Errorf("%s: wanted one tensor, found %d", path, len(table))
	}
	var entry struct {
		Dtype       string
		Shape       []int64
		DataOffsets [2]uint64 `json:"data_offsets"`
	}
	for _, described := range table {
		if err := json.Unmarshal(described, &entry); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	dtype := pb.Dtype(pb.Dtype_value["DTYPE_"+entry.Dtype])
	body, begin, end := raw[start:], entry.DataOffsets[0], entry.DataOffsets[1]
	if begin > end || end > uint64(len(body)) {
		return nil, nil, fmt.Errorf("%s is cut short", path)
	}
	return &pb.TensorSpec{Dtype: dtype, Shape: entry.Shape}, body[begin:end], nil
}

// What a failure means, for people: the message names the remedy, google.rpc's details are for programs.
func explain(err error, server string) string {
	failed, ok := status.FromError(err)
	if !ok {
		return "client: " + err.Error()
	}
	details := failed.Details()
	if len(details) == 0 && failed.Code() == codes.DeadlineExceeded {
		return fmt.Sprintf("%s: no answer within %s", server, timeout)
	}
	if len(details) == 0 { // nobody answered, or not a latentgate
		return fmt.Sprintf("%s: %s: %s\n  is it the data port of a running `latentgate serve`?",
			server, failed.Code(), failed.Message())
	}
	lines := []string{fmt.Sprintf("%s: %s", failed.Code(), failed.Message())}
	for _, detail := range details {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			lines = append(lines, "reason: "+detail.Reason)
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				lines = append(lines, "field: "+violation.Field)
			}
		case *errdetails.RetryInfo:
			delay := time.Duration(detail.RetryDelay.GetSeconds())*time.Second + time.Duration(detail.RetryDelay.GetNanos())
			lines = append(lines, "try again in "+delay.String())
		}
	}
	return strings.Join(lines, "\n  ")
}

func run(server, source, output, model string) error {
	// One connection serves any number of calls and goroutines, so keep it.
	connection, err := grpc.Dial(server, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewLatentsClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()

	var tensor *pb.TensorSpec
	var latents []byte
	if filepath.Ext(source) == ".safetensors" {
		tensor, latents, err = readSafetensors(source)
		if err != nil {
			return err
		}
	} else {
		picture, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		encoded, err := encode(ctx, client, model, picture)
		if err != nil {
			return err
		}
		fmt.Println("encode:", encoded)
		tensor, latents = encoded.header.Tensor, encoded.data
	}
	decoded, err := decode(ctx, client, model, tensor, latents)
	if err != nil {
		return err
	}
	fmt.Println("decode:", decoded)
	return os.WriteFile(output, decoded.data, 0o644)
}

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fmt.Fprintln(os.Stderr, "client INPUT OUTPUT.png [MODEL]: INPUT is a picture, or latents in a .safetensors file")
		os.Exit(2)
	}
	server := os.Getenv("LATENTGATE_SERVER")
	if server == "" {
		server = "http://127.0.0.1:8790"
	}
	server = strings.TrimSuffix(strings.TrimPrefix(server, "http://"), "/")
	model := "builtin"
	if len(os.Args) == 4 {
		model = os.Args[3]
	}
	if err := run(server, os.Args[1], os.Args[2], model); err != nil {
		fmt.Fprintln(os.Stderr, explain(err, server))
		os.Exit(1)
	}
}
