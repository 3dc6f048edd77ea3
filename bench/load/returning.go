package main

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	downPause  = time.Second // how long a load balancer sends nothing to a server that has refused a connection
	unknownEnd = time.Second // after which a device returns that was not told when
)

// roaming is the command "roam": devices connect to several servers and return whenever their connection ends.
type roaming struct {
	Ports            []int `json:"ports"`
	LeastConnections bool  `json:"least_connections"` // the balance; else random
	Cursors          bool  `json:"cursors"`
}

// returning keeps devices connected: each connects again as its "reconnect" notice says. It stands for the load
// balancer, too: it chooses the server, and avoids one that has just refused a connection.
type returning struct {
	roaming
	open     map[int]int // connections by port, including attempts
	downTill map[int]time.Time
	told     map[*device]time.Duration
	goneAt   map[*device]time.Time
	outages  []int64         // milliseconds
	sent     map[int][]int64 // when handshakes were sent, by port, in milliseconds since 1970
	silent   int             // connections that ended without a notice
	seen     map[*device]map[int64]bool
	heard    returned
}

// returned is the answer to "returned": what has happened since the last one.
type returned struct {
	OutageMS  quantiles      `json:"outage_ms"`
	Unnoticed int            `json:"unnoticed"`
	Busiest   [2]int         `json:"busiest"` // the most handshakes sent to one port in a second, and in 100 ms
	Gaps      int            `json:"gaps"`
	Doubled   int            `json:"doubled"` // since the beginning, as Unordered and Gaps
	Unordered int            `json:"unordered"`
	Refused   map[string]int `json:"refused"`
	Errors    map[string]int `json:"errors"`
}

func (f *fleet) roam(c connecting, r roaming) any {
	it := &returning{
		roaming: r, open: map[int]int{}, downTill: map[int]time.Time{}, told: map[*device]time.Duration{},
		goneAt: map[*device]time.Time{}, seen: map[*device]map[int64]bool{},
	}
	it.forget()
	f.do(func() { f.returning = it })
	c.Port = r.Ports[0]
	return f.connect(c)
}

func (r *returning) forget() {
	r.outages, r.silent, r.sent = nil, 0, map[int][]int64{}
}

// countOpen answers "open": how many devices are connected now.
func (f *fleet) countOpen() any {
	count := 0
	f.do(func() {
		for _, d := range f.devices {
			if d.state == open {
				count++
			}
		}
	})
	return map[string]int{"open": count}
}

// report answers "returned", and counts anew.
func (f *fleet) report() any {
	var answer returned
	f.do(func() {
		r := f.returning
		answer = r.heard
		answer.OutageMS, answer.Unnoticed = summarise(r.outages), r.silent
		for _, sent := range r.sent {
			answer.Busiest[0] = max(answer.Busiest[0], most(sent, 1_000))
			answer.Busiest[1] = max(answer.Busiest[1], most(sent, 100))
		}
		answer.Refused, answer.Errors = f.goal.answer.Refused, f.goal.answer.Errors
		f.goal.answer.Refused, f.goal.answer.Errors = map[string]int{}, map[string]int{}
		r.forget()
	})
	return answer
}

// most returns how many of these times, which are in order, are within a window of this length at most.
func most(times []int64, window int64) int {
	found, first := 0, 0
	for last, at := range times {
		for times[first] <= at-window {
			first++
		}
		found = max(found, last-first+1)
	}
	return found
}

// choose returns the port of the next attempt.
func (r *returning) choose(now time.Time) int {
	up := slices.DeleteFunc(slices.Clone(r.Ports), func(port int) bool { return now.Before(r.downTill[port]) })
	if len(up) == 0 {
		up = r.Ports
	}
	rand.Shuffle(len(up), func(i, j int) { up[i], up[j] = up[j], up[i] })
	if r.LeastConnections {
		return slices.MinFunc(up, func(a, b int) int { return r.open[a] - r.open[b] })
	}
	return up[0]
}

func (r *returning) request(d *device, now time.Time) []byte {
	r.sent[d.port] = append(r.sent[d.port], now.UnixMilli())
	switch {
	case !r.Cursors:
		return d.request
	case d.cursor == "":
		return bytes.Replace(d.request, []byte(" HTTP/1.1"), []byte("&cursors=1 HTTP/1.1"), 1)
	}
	return bytes.Replace(d.request, []byte(" HTTP/1.1"), []byte("&after="+d.cursor+" HTTP/1.1"), 1)
}

func (r *returning) onEnd(d *device, now time.Time) time.Time {
	r.goneAt[d] = now
	after, isTold := r.told[d]
	delete(r.told, d)
	if isTold {
		r.downTill[d.port] = now.Add(downPause)
		return now.Add(after)
	}
	r.silent++
	return now.Add(unknownEnd)
}

func (r *returning) onOpen(d *device, now time.Time) {
	if since, wasIn := r.goneAt[d]; wasIn {
		r.outages = append(r.outages, now.Sub(since).Milliseconds())
		delete(r.goneAt, d)
	}
}

// onRefusal is called for an attempt that failed, for whatever reason.
func (r *returning) onRefusal(d *device, now time.Time) {
	if r != nil {
		r.downTill[d.port] = now.Add(downPause)
	}
}

// message is true for one that the device had not received. The cursor of a message is its last field.
func (r *returning) message(d *device, payload []byte) bool {
	if at := bytes.LastIndex(payload, []byte(`"cursor":"`)); at >= 0 {
		rest := payload[at+len(`"cursor":"`):]
		d.cursor = string(rest[:bytes.IndexByte(rest, '"')])
	}
	sequence := number(payload, `"seq":`)
	if r.seen[d] == nil {
		r.seen[d] = map[int64]bool{}
	}
	switch {
	case r.seen[d][sequence]:
		r.heard.Doubled++
		return false
	case sequence < d.sequence:
		r.heard.Unordered++
	}
	r.seen[d][sequence] = true
	return true
}

// notice is true for a message that is no publication.
func (r *returning) notice(d *device, payload []byte) bool {
	switch {
	case bytes.HasPrefix(payload, []byte(`{"type":"reconnect"`)):
		r.told[d] = time.Duration(number(payload, `"after_ms":`)) * time.Millisecond
	case bytes.HasPrefix(payload, []byte(`{"type":"gap"`)):
		r.heard.Gaps++
	default:
		return false
	}
	return true
}
