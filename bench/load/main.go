// load: load generator for an OpenAI-compatible chat endpoint: a closed loop, or with -rate an open one.
// Raw HTTP/1.1 over TCP (no net/http client) so it costs little CPU itself.
// With -pid it charges the gateway's CPU (utime+stime, whole process tree) to
// the requests and chunks that finished in the measured window.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	addr   = flag.String("addr", "127.0.0.1:9000", "host:port")
	path   = flag.String("path", "/v1/chat/completions", "path")
	conc   = flag.Int("c", 32, "concurrent connections")
	dur    = flag.Duration("d", 10*time.Second, "measured time")
	warm   = flag.Duration("warm", 2*time.Second, "warm-up before measuring")
	stream = flag.Bool("stream", false, "stream")
	toks   = flag.Int("tokens", 64, "max_tokens (= chunks per streamed response)")
	key    = flag.String("key", "sk-bench-0001", "Bearer key (a verb like %04d is replaced by the connection's number, or with -keys by the key's)")
	keys   = flag.Int("keys", 0, "another of this many keys for every request, spread over all of them")
	sweep  = flag.Bool("sweep", false, "with -keys: the warm-up lasts until every key was used")
	models = flag.Int("models", 0, "with -keys: a verb in -model is replaced by the key's number modulo this")
	model  = flag.String("model", "mock", "model")
	rate   = flag.Float64("rate", 0, "open loop: this many requests per second over all connections")
	finish = flag.Duration("finish", 15*time.Second, "wait at most this long for the last answers")
	size   = flag.Int("bytes", 1000, "bytes of message text")
	usageO = flag.Bool("usage", false, "client itself asks for stream_options.include_usage")
	extra  = flag.String("H", "", "extra request headers, separated by |")
	pid    = flag.Int("pid", 0, "gateway pid: report its CPU per request")
	upPid  = flag.Int("uppid", 0, "upstream pid: report its CPU use")
	auxPid = flag.Int("auxpid", 0, "another pid (e.g. redis): report its CPU per request")
	noKA   = flag.Bool("close", false, "new connection for every request")
	stag   = flag.Duration("stagger", 0, "spread the start of the connections over this time")
	asJSON = flag.Bool("json", false, "print one JSON line")
	label  = flag.String("label", "", "label copied to the output")
	phase  atomic.Int32 // 0 warm, 1 measure, 2 stop
	issued atomic.Int64 // keys handed out so far
	done   atomic.Int64 // answers so far, warm-up included
	errs   atomic.Int64
	lastE  atomic.Value
)

type worker struct {
	lat, ttft, gap []float64 // ms
	reqs, chunks   int64
	bytes          int64
}

// Neighbouring keys are not used one after the other: that would flatter caches. A prime, so all are used.
const stride = 7919

func numbered(pattern string, i int) string {
	if strings.Contains(pattern, "%") {
		return fmt.Sprintf(pattern, i)
	}
	return pattern
}

// builder returns the request of a connection: always the same bytes, or with -keys another key each time.
func builder(i int) func() []byte {
	if *keys == 0 {
		req := build(i)
		return func() []byte { return req }
	}
	const keyMark, modelMark = "@@key@@", "@@model@@"
	k, m := *key, *model
	length := len(numbered(m, 0))
	plain := buildWith(keyMark, modelMark, length-len(modelMark))
	beforeKey, rest, _ := bytes.Cut(plain, []byte(keyMark))
	between, after, _ := bytes.Cut(rest, []byte(modelMark))
	buf := make([]byte, 0, len(plain)+64)
	return func() []byte {
		n := int(issued.Add(1) * stride % int64(*keys))
		e := n
		if *models > 0 {
			e = n % *models
		}
		buf = append(append(buf[:0], beforeKey...), numbered(k, n)...)
		buf = append(append(buf, between...), numbered(m, e)...)
		return append(buf, after...)
	}
}

func build(i int) []byte {
	return buildWith(numbered(*key, i), *model, 0)
}

func buildWith(k, name string, longer int) []byte {
	text := strings.Repeat("Explain how a ledger records usage exactly once. ", *size/49+1)[:*size]
	m := map[string]any{"model": name, "max_tokens": *toks, "temperature": 0.7,
		"messages": []any{map[string]any{"role": "system", "content": "You are a helpful assistant."},
			map[string]any{"role": "user", "content": text}}}
	if *stream {
		m["stream"] = true
		if *usageO {
			m["stream_options"] = map[string]any{"include_usage": true}
		}
	}
	b, _ := json.Marshal(m)
	ex := ""
	for _, h := range strings.Split(*extra, "|") {
		if h != "" {
			ex += h + "\r\n"
		}
	}
	cl := ""
	if *noKA {
		cl = "Connection: close\r\n"
	}
	return append([]byte(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: */*\r\n%s%sContent-Length: %d\r\n\r\n",
		*path, *addr, k, cl, ex, len(b)+longer)), b...)
}

var errStatus = errors.New("status")

// one exchanges a request; calls onData with every piece of body as it is read.
func one(c net.Conn, br *bufio.Reader, req []byte, onData func([]byte)) (closeAfter bool, err error) {
	if _, err = c.Write(req); err != nil {
		return true, err
	}
	line, err := br.ReadSlice('\n')
	if err != nil {
		return true, err
	}
	if len(line) < 12 {
		return true, errors.New("short status line")
	}
	status := string(line[9:12])
	length, chunked := int64(-1), false
	for {
		line, err = br.ReadSlice('\n')
		if err != nil {
			return true, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		k, v, _ := bytes.Cut(line, []byte(":"))
		v = bytes.TrimSpace(v)
		switch len(k) {
		case 14:
			if bytes.EqualFold(k, []byte("content-length")) {
				length, _ = strconv.ParseInt(string(v), 10, 64)
			}
		case 17:
			if bytes.EqualFold(k, []byte("transfer-encoding")) {
				chunked = bytes.EqualFold(v, []byte("chunked"))
			}
		case 10:
			if bytes.EqualFold(k, []byte("connection")) {
				closeAfter = bytes.EqualFold(v, []byte("close"))
			}
		}
	}
	var sample []byte
	give := func(b []byte) {
		if status != "200" && len(sample) < 300 {
			sample = append(sample, b...)
		}
		onData(b)
	}
	readN := func(n int64) error {
		for n > 0 {
			if br.Buffered() == 0 {
				if _, e := br.Peek(1); e != nil {
					return e
				}
			}
			k := int64(br.Buffered())
			if k > n {
				k = n
			}
			b, _ := br.Peek(int(k))
			give(b)
			br.Discard(int(k))
			n -= k
		}
		return nil
	}
	switch {
	case chunked:
		for {
			line, err = br.ReadSlice('\n')
			if err != nil {
				return true, err
			}
			s := strings.TrimSpace(string(line))
			if i := strings.IndexByte(s, ';'); i >= 0 {
				s = s[:i]
			}
			n, e := strconv.ParseInt(s, 16, 64)
			if e != nil {
				return true, e
			}
			if n == 0 {
				_, err = br.ReadSlice('\n')
				break
			}
			if err = readN(n); err != nil {
				return true, err
			}
			if _, err = br.Discard(2); err != nil {
				return true, err
			}
		}
	case length >= 0:
		err = readN(length)
	default:
		closeAfter = true
		for {
			if _, e := br.Peek(1); e != nil {
				if e != io.EOF {
					err = e
				}
				break
			}
			b, _ := br.Peek(br.Buffered())
			give(b)
			br.Discard(len(b))
		}
	}
	if err == nil && status != "200" {
		lastE.Store(status + " " + string(sample))
		return closeAfter, errStatus
	}
	return closeAfter, err
}

func (w *worker) run(i int, wg *sync.WaitGroup) {
	defer wg.Done()
	next := builder(i)
	var c net.Conn
	var br *bufio.Reader
	time.Sleep(*stag * time.Duration(i) / time.Duration(*conc))
	var every time.Duration
	due := time.Now()
	if *rate > 0 {
		every = time.Duration(float64(*conc) / *rate * float64(time.Second))
		due = due.Add(every * time.Duration(i) / time.Duration(*conc)) // spread over one period
	}
	for phase.Load() < 2 {
		if c == nil {
			var err error
			if c, err = net.Dial("tcp", *addr); err != nil {
				errs.Add(1)
				lastE.Store(err.Error())
				time.Sleep(50 * time.Millisecond)
				continue
			}
			br = bufio.NewReaderSize(c, 64<<10)
		}
		req := next()
		t0 := time.Now()
		if every > 0 {
			// Late because the answer before was slow: the wait counts. Late because a timer is: it does not.
			if wait := due.Sub(t0); wait > 0 {
				time.Sleep(wait)
				t0 = time.Now()
			} else {
				t0 = due
			}
			due = due.Add(every)
		}
		var first, last time.Time
		var tail byte
		var ended bool
		events, nb := int64(0), int64(0)
		cl, err := one(c, br, req, func(b []byte) {
			nb += int64(len(b))
			if !*stream {
				return
			}
			now := time.Now()
			if first.IsZero() {
				first = now
			} else if phase.Load() == 1 && len(w.gap) < 200000 {
				w.gap = append(w.gap, now.Sub(last).Seconds()*1e3)
			}
			last = now
			before := events
			// an event ends at a blank line, also when it is split over reads
			if tail == '\n' && b[0] == '\n' {
				events++
			}
			events += int64(bytes.Count(b, []byte("\n\n")))
			tail = b[len(b)-1]
			if phase.Load() == 1 { // counted as they arrive, not at the end of the response
				w.chunks += events - before
			}
			if bytes.Contains(b, []byte("[DONE]")) {
				ended = true
			}
		})
		if err == nil && *stream && !ended {
			err = errors.New("stream without [DONE]")
		}
		if err != nil {
			if phase.Load() == 1 || *sweep {
				errs.Add(1)
			}
			if err != errStatus {
				lastE.Store(err.Error())
			}
			c.Close()
			c = nil
			continue
		}
		done.Add(1)
		if phase.Load() == 1 {
			t := time.Now()
			w.lat = append(w.lat, t.Sub(t0).Seconds()*1e3)
			if *stream {
				w.ttft = append(w.ttft, first.Sub(t0).Seconds()*1e3)
			}
			w.reqs++
			w.bytes += nb
		}
		if cl || *noKA {
			c.Close()
			c = nil
		}
	}
}

func pct(v []float64, p float64) float64 {
	if len(v) == 0 {
		return 0
	}
	i := int(float64(len(v))*p/100 + 0.5)
	if i >= len(v) {
		i = len(v) - 1
	}
	return v[i]
}

// tree CPU seconds (utime+stime) and RSS in MiB of pid and its live descendants.
func procTree(root int) (cpu, rss float64) {
	if root <= 0 {
		return
	}
	type p struct {
		pp       int
		cpu, rss float64
	}
	all := map[int]p{}
	ds, _ := os.ReadDir("/proc")
	for _, d := range ds {
		id, e := strconv.Atoi(d.Name())
		if e != nil {
			continue
		}
		b, e := os.ReadFile("/proc/" + d.Name() + "/stat")
		if e != nil {
			continue
		}
		s := string(b)
		f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
		pp, _ := strconv.Atoi(f[1])
		u, _ := strconv.ParseFloat(f[11], 64)
		k, _ := strconv.ParseFloat(f[12], 64)
		r, _ := strconv.ParseFloat(f[21], 64)
		all[id] = p{pp, (u + k) / 100, r * float64(os.Getpagesize()) / (1 << 20)}
	}
	for id := range all {
		for x := id; x > 1; x = all[x].pp {
			if x == root {
				cpu += all[id].cpu
				rss += all[id].rss
				break
			}
			if _, ok := all[x]; !ok {
				break
			}
		}
	}
	return
}

// busy seconds of every core
func cores() []float64 {
	b, _ := os.ReadFile("/proc/stat")
	var out []float64
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) > 8 && strings.HasPrefix(f[0], "cpu") && f[0] != "cpu" {
			s := 0.0
			for i, x := range f[1:9] {
				if i == 3 || i == 4 {
					continue
				}
				v, _ := strconv.ParseFloat(x, 64)
				s += v
			}
			out = append(out, s/100)
		}
	}
	return out
}

func main() {
	flag.Parse()
	runtime.GOMAXPROCS(1)
	ws := make([]*worker, *conc)
	var wg sync.WaitGroup
	for i := range ws {
		ws[i] = &worker{}
		wg.Add(1)
		go ws[i].run(i, &wg)
	}
	time.Sleep(*warm)
	for *sweep && done.Load() < int64(*keys) && errs.Load() == 0 {
		time.Sleep(20 * time.Millisecond)
	}
	g0, _ := procTree(*pid)
	u0, _ := procTree(*upPid)
	a0, _ := procTree(*auxPid)
	s0, _ := procTree(os.Getpid())
	c0 := cores()
	t0 := time.Now()
	phase.Store(1)
	time.Sleep(*dur)
	phase.Store(2)
	el := time.Since(t0).Seconds()
	g1, rss := procTree(*pid)
	u1, _ := procTree(*upPid)
	a1, _ := procTree(*auxPid)
	s1, _ := procTree(os.Getpid())
	c1 := cores()
	fin := make(chan struct{})
	go func() { wg.Wait(); close(fin) }()
	select {
	case <-fin:
	case <-time.After(*finish):
		errs.Add(1)
		lastE.Store("workers hung")
	}
	var lat, ttft, gap []float64
	var reqs, chunks, nb int64
	for _, w := range ws {
		lat = append(lat, w.lat...)
		ttft = append(ttft, w.ttft...)
		gap = append(gap, w.gap...)
		reqs += w.reqs
		chunks += w.chunks
		nb += w.bytes
	}
	sort.Float64s(lat)
	sort.Float64s(ttft)
	sort.Float64s(gap)
	o := map[string]any{"label": *label, "c": *conc, "stream": *stream, "secs": el, "requests": reqs, "all_requests": done.Load(), "errors": errs.Load(),
		"rps": float64(reqs) / el, "p50_ms": pct(lat, 50), "p99_ms": pct(lat, 99), "MBps": float64(nb) / el / 1e6}
	if *stream {
		o["chunks"] = chunks
		o["chunks_s"] = float64(chunks) / el
		o["ttft_p50_ms"], o["ttft_p99_ms"] = pct(ttft, 50), pct(ttft, 99)
		o["gap_p50_ms"], o["gap_p99_ms"] = pct(gap, 50), pct(gap, 99)
	}
	for i := range c0 {
		o[fmt.Sprintf("core%d", i)] = (c1[i] - c0[i]) / el
	}
	o["load_cpu"] = (s1 - s0) / el
	if *upPid > 0 {
		o["up_cpu"] = (u1 - u0) / el
	}
	if *auxPid > 0 && reqs > 0 {
		o["aux_cpu"] = (a1 - a0) / el
		o["aux_ms_req"] = (a1 - a0) * 1e3 / float64(reqs)
	}
	if *pid > 0 && (reqs > 0 || chunks > 0) {
		o["gw_cpu"] = (g1 - g0) / el
		if reqs > 0 {
			o["cpu_ms_req"] = (g1 - g0) * 1e3 / float64(reqs)
		}
		o["rss_mb"] = rss
		if chunks > 0 {
			o["cpu_us_chunk"] = (g1 - g0) * 1e6 / float64(chunks)
		}
	}
	if v := lastE.Load(); v != nil {
		o["last_error"] = v
	}
	if *asJSON {
		b, _ := json.Marshal(o)
		fmt.Println(string(b))
		return
	}
	ks := make([]string, 0, len(o))
	for k := range o {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	for _, k := range ks {
		if f, ok := o[k].(float64); ok {
			fmt.Printf("%-14s %.3f\n", k, f)
		} else {
			fmt.Printf("%-14s %v\n", k, o[k])
		}
	}
}
