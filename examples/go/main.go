// A device: prints what it hears, speaks a WAV file, and reconnects after anything.
//
//	go run . [FILE.wav]
//
// The environment says where and who: examples/README.rst.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const (
	base, ceiling    = time.Second, time.Minute
	slowLow, slowTop = time.Minute, 5 * time.Minute
	stable           = time.Minute
	silence          = 75 * time.Second // the gateway pings every 30 s: after two that are missing the network is dead
)

var (
	address    = env("GATEWAY_URL", "ws://127.0.0.1:8080/ws")
	apiKey     = env("API_KEY", "")
	cursorFile = env("CURSOR_FILE", "cursor.txt")
	scale, _   = strconv.ParseFloat(env("WAIT_SCALE", "1"), 64) // shortens all waits, to try things out
)

// end is why a connection ended, or never began: a close code or an HTTP status. 1006: nobody said why.
type end struct {
	why     int
	minimum time.Duration
}

type message struct {
	Type    string  `json:"type"`
	Text    string  `json:"text"`
	Error   string  `json:"error"`
	Success *bool   `json:"success"`
	Final   *bool   `json:"final"`
	Missed  int     `json:"missed"`
	AfterMS int64   `json:"after_ms"`
	Cursor  *string `json:"cursor"`
}

type device struct {
	token     string
	cursor    atomic.Pointer[string]
	recording []byte
	spoken    atomic.Bool
	comeBack  time.Duration // how long a draining gateway has asked this device to stay away
}

// wait is the time until the next attempt. Full jitter: a fleet that lost one server must not return in one moment.
// What the gateway asks for (Retry-After) is a minimum, and the jitter comes on top: all were told the same number.
func wait(e end, attempt int) time.Duration {
	low, high := time.Duration(0), min(ceiling, base<<min(attempt, 16))
	switch e.why {
	case 400, 403, 404, 426, 1002, 1007, 4409:
		// Trying again soon will not help: the firmware, the other holder of the id or the gateway must change first. The
		// device keeps trying all the same, for nobody else would ever bring it back.
		low, high = slowLow, slowTop
	}
	return scaled(e.minimum + low + rand.N(high-low))
}

func (d *device) run() {
	for attempt := 0; ; attempt++ {
		since := time.Now()
		e := d.connect()
		// One that is accepted and closed at once goes on backing off; only a connection that lasted starts anew.
		if time.Since(since) > scaled(stable) {
			attempt = 0
		}
		if (e.why == 401 || e.why == 4401) && apiKey != "" {
			d.token = "" // fetched after the wait: when a key is removed a whole fleet needs new ones
		}
		pause := wait(e, attempt)
		fmt.Printf("ended: %d, again in %.2f s\n", e.why, pause.Seconds())
		time.Sleep(pause)
	}
}

func (d *device) connect() end {
	if d.token == "" && apiKey != "" {
		if e, failed := d.fetchToken(); failed {
			return e
		}
	}
	// ?cursors=1 says "I go by cursors and have none yet": everything that is kept for this device comes.
	query := url.Values{"interim": {"true"}, "cursors": {"1"}}
	if cursor := *d.cursor.Load(); cursor != "" {
		query = url.Values{"interim": {"true"}, "after": {cursor}}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dead := time.AfterFunc(silence, cancel)
	conn, response, err := websocket.Dial(ctx, address+"?"+query.Encode(), &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + d.token}},
		// The library answers pings while somebody reads; true lets it.
		OnPingReceived: func(context.Context, []byte) bool { dead.Reset(silence); return true },
	})
	if err != nil && response != nil {
		body, _ := io.ReadAll(response.Body)
		if response.StatusCode == 400 && strings.Contains(string(body), "Unknown cursor") {
			d.save("") // of another device or mailbox. Without it comes all that is kept: some of it perhaps again
			return end{why: 1006}
		}
		return end{response.StatusCode, retryAfter(response)}
	} else if err != nil {
		return end{why: 1006}
	}
	defer conn.CloseNow()
	fmt.Println("connected")
	d.comeBack = 0
	go d.acknowledge(ctx, conn)
	if len(d.recording) > 0 && !d.spoken.Load() {
		go d.speak(ctx, conn)
	}
	for {
		kind, data, err := conn.Read(ctx)
		if err != nil {
			var closed websocket.CloseError
			if errors.As(err, &closed) {
				return end{int(closed.Code), d.comeBack}
			}
			return end{why: 1006}
		}
		dead.Reset(silence)
		var m message
		if kind == websocket.MessageText && json.Unmarshal(data, &m) == nil {
			d.handle(m)
		}
	}
}

func (d *device) handle(m message) {
	switch {
	case m.Type == "transcription" && m.Final != nil && !*m.Final:
		fmt.Println("perhaps:", m.Text)
		return // a hypothesis carries the cursor of the message before it: nothing to save
	case m.Type == "transcription" && m.Success != nil && !*m.Success:
		fmt.Println("failed:", m.Error)
	case m.Type == "transcription":
		fmt.Println("heard:", m.Text)
	case m.Type == "gap":
		fmt.Println("missed:", m.Missed)
	case m.Type == "reconnect":
		d.comeBack = time.Duration(m.AfterMS) * time.Millisecond
	} // newer gateways may send what this program does not know
	if m.Cursor != nil {
		d.save(*m.Cursor) // after the message has been dealt with: the other order would lose it in a crash
	}
}

// acknowledge sends one a second at most. A cursor covers all before it, and must be safe here before the gateway may
// delete.
func (d *device) acknowledge(ctx context.Context, conn *websocket.Conn) {
	for last := ""; ctx.Err() == nil; time.Sleep(scaled(time.Second)) {
		if cursor := *d.cursor.Load(); cursor != last {
			last = cursor
			ack, _ := json.Marshal(map[string]string{"type": "ack", "cursor": cursor})
			conn.Write(ctx, websocket.MessageText, ack)
		}
	}
}

// speak sends a recording in place of a microphone: 100 ms at a time, at the speed of speech. Its header, which goes
// out first, tells the gateway the format; a microphone sends bare samples: 16 kHz, mono, signed 16-bit little-endian.
func (d *device) speak(ctx context.Context, conn *websocket.Conn) {
	for piece := range slices.Chunk(d.recording, 3200) {
		if conn.Write(ctx, websocket.MessageBinary, piece) != nil {
			return // it is spoken on the next connection
		}
		time.Sleep(100 * time.Millisecond)
	}
	// Without this the gateway would wait for 0.8 s of silence.
	if conn.Write(ctx, websocket.MessageText, []byte(`{"type":"audio_end"}`)) == nil {
		fmt.Println("spoke:", len(d.recording), "bytes")
		d.spoken.Store(true)
	}
}

// save writes the cursor whole or not at all, even if the power fails.
func (d *device) save(cursor string) {
	d.cursor.Store(&cursor)
	file, err := os.Create(cursorFile + ".new")
	if err == nil {
		_, err = file.WriteString(cursor)
		err = errors.Join(err, file.Sync(), file.Close(), os.Rename(cursorFile+".new", cursorFile))
	}
	if err != nil {
		fmt.Println("cursor not saved:", err)
	}
}
