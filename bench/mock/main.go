// mock: a small OpenAI-compatible upstream for measuring gateways.
//
//	POST /v1/chat/completions   non-stream: one ~700-byte chat.completion
//	                            stream: max_tokens chunks (~250 bytes each, one
//	                            flush per chunk), usage chunk when
//	                            stream_options.include_usage, data: [DONE];
//	                            with continuous_usage_stats a running total in
//	                            every chunk, as vLLM does it
//	                            a model name ending in @10ms sets the delay before
//	                            every chunk for that request (else -delay)
//	GET  /v1/models             one model
//	GET  /stats                 requests and streamed chunks so far
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

var (
	addr     = flag.String("addr", "127.0.0.1:9000", "listen address")
	delay    = flag.Duration("delay", 0, "sleep before every streamed chunk (inter-token latency)")
	latency  = flag.Duration("latency", 0, "sleep before the first byte (prefill)")
	procs    = flag.Int("procs", 1, "GOMAXPROCS")
	burst    = flag.Bool("burst", false, "flush once per response instead of once per chunk")
	requests atomic.Int64
	chunks   atomic.Int64
)

type reqBody struct {
	Model         string `json:"model"`
	Stream        bool   `json:"stream"`
	MaxTokens     int    `json:"max_tokens"`
	StreamOptions *struct {
		IncludeUsage bool `json:"include_usage"`
		Continuous   bool `json:"continuous_usage_stats"` // vLLM: a running total in every chunk
	} `json:"stream_options"`
}

var filler = strings.Repeat("the quick brown fox jumps over the lazy dog ", 6)[:250]

func usage(n int) string {
	return fmt.Sprintf(`{"prompt_tokens":231,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":64}}`, 231+n, n)
}

func running(n int) string {
	return fmt.Sprintf(`{"prompt_tokens":231,"total_tokens":%d,"completion_tokens":%d}`, 231+n, n)
}

func chat(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	var q reqBody
	if err := json.Unmarshal(body, &q); err != nil {
		http.Error(w, `{"error":{"message":"bad json","type":"BadRequestError","code":400}}`, 400)
		return
	}
	n := q.MaxTokens
	if n <= 0 {
		n = 16
	}
	wait := *delay
	if _, d, ok := strings.Cut(q.Model, "@"); ok { // model "x@10ms": per-request delay
		if v, err := time.ParseDuration(d); err == nil {
			wait = v
		}
	}
	id := "chatcmpl-" + fmt.Sprintf("%032x", requests.Add(1))
	if *latency > 0 {
		time.Sleep(*latency)
	}
	if !q.Stream {
		b := []byte(`{"id":"` + id + `","object":"chat.completion","created":1760000000,"model":"` + q.Model +
			`","choices":[{"index":0,"message":{"role":"assistant","content":"` + filler +
			`","refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning_content":null},"logprobs":null,"finish_reason":"stop","stop_reason":null}],"service_tier":null,"system_fingerprint":null,"usage":` +
			usage(n) + `,"prompt_logprobs":null}`)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.Write(b)
		return
	}
	fl := w.(http.Flusher)
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	head := `data: {"id":"` + id + `","object":"chat.completion.chunk","created":1760000000,"model":"` + q.Model + `","choices":[`
	asked := q.StreamOptions != nil && q.StreamOptions.IncludeUsage
	every := asked && q.StreamOptions.Continuous
	var buf bytes.Buffer
	for i := 0; i < n; i++ {
		if wait > 0 {
			time.Sleep(wait)
		}
		buf.Reset()
		buf.WriteString(head)
		buf.WriteString(`{"index":0,"delta":{"content":" tok`)
		buf.WriteString(strconv.Itoa(i))
		if i == n-1 {
			buf.WriteString(`"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]`)
		} else {
			buf.WriteString(`"},"logprobs":null,"finish_reason":null,"token_ids":null}]`)
		}
		if every {
			buf.WriteString(`,"usage":` + running(i+1))
		}
		buf.WriteString("}\n\n")
		if _, err := w.Write(buf.Bytes()); err != nil {
			return
		}
		chunks.Add(1)
		if !*burst {
			fl.Flush()
		}
	}
	if asked {
		io.WriteString(w, head+`],"usage":`+usage(n)+"}\n\n")
		if !*burst {
			fl.Flush()
		}
	}
	io.WriteString(w, "data: [DONE]\n\n")
	fl.Flush()
}

func main() {
	flag.Parse()
	runtime.GOMAXPROCS(*procs)
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/chat/completions", chat)
	mux.HandleFunc("/v1/models", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"object":"list","data":[{"id":"mock","object":"model","created":1760000000,"owned_by":"mock"}]}`)
	})
	mux.HandleFunc("/stats", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"requests":%d,"chunks":%d}`+"\n", requests.Load(), chunks.Load())
	})
	log.Printf("mock on %s delay=%v latency=%v", *addr, *delay, *latency)
	log.Fatal(http.ListenAndServe(*addr, mux))
}
