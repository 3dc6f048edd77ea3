// A device: prints the messages it receives, streams a WAV file, and reconnects whatever ends its connection.
//
//	go run . [FILE.wav]
//
// Its settings are environment variables: see examples/README.rst.
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
	silence          = 75 * time.Second // the gateway pings every 30 s: after two missing pings the network is dead
	patience         = 10 * time.Second // for the handshake, and for a token
	// The largest message accepted. The gateway rejects records over 1 MiB. The library's own limit, 32 KiB,
	// would end the connection, and with cursors the gateway would send the same message again after each reconnect.
	largest = 2 << 20
)

var (
	address    = env("GATEWAY_URL", "ws://127.0.0.1:8080/ws")
	apiKey     = env("API_KEY", "")
	cursorFile = env("CURSOR_FILE", "cursor.txt")
	scale, _   = strconv.ParseFloat(env("WAIT_SCALE", "1"), 64) // shortens all waits, for experiments
)

// end is why a connection ended or was refused: a close code or an HTTP status. 1006 means that no reason is known.
type end struct {
	why     int
	minimum time.Duration // before the next attempt
	lasted  time.Duration // of the connection; 0 if there was none
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
	comeBack  time.Duration // the delay that a draining gateway has asked for
}

// wait is the time until the next attempt, with full jitter: a fleet that lost its server must not return all at once.
// Retry-After is a minimum, and the jitter comes on top, because every device was given the same number.
func wait(e end, attempt int) time.Duration {
	low, high := time.Duration(0), min(ceiling, base<<min(attempt, 16))
	switch e.why {
	case 400, 403, 404, 426, 1002, 1007, 4409:
		// An early retry cannot succeed: the firmware, the configuration, or another holder of this device id must change
		// first. But never give up: only the device itself can reconnect.
		low, high = slowLow, slowTop
	}
	return scaled(e.minimum + low + rand.N(high-low))
}

func (d *device) run() {
	for attempt := 0; ; attempt++ {
		e := d.connect()
		// Only a connection that lasted resets the backoff, not one that is accepted and closed at once.
		if e.lasted > scaled(stable) {
			attempt = 0
		}
		if (e.why == 401 || e.why == 4401) && apiKey != "" {
			d.token = "" // fetch a new one, after the wait: when a key is removed, a whole fleet needs new tokens
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
	// ?cursors=1: this device uses cursors and has none yet. The gateway sends everything that it keeps for the device.
	query := url.Values{"interim": {"true"}, "cursors": {"1"}}
	if cursor := *d.cursor.Load(); cursor != "" {
		query = url.Values{"interim": {"true"}, "after": {cursor}}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dead := time.AfterFunc(silence, cancel)
	handshake, stop := context.WithTimeout(ctx, patience)
	defer stop()
	conn, response, err := websocket.Dial(handshake, address+"?"+query.Encode(), &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + d.token}},
		// Read answers pings with pongs, unless this returns false.
		OnPingReceived: func(context.Context, []byte) bool { dead.Reset(silence); return true },
	})
	if err != nil && response != nil {
		body, _ := io.ReadAll(response.Body)
		if response.StatusCode == 400 && strings.Contains(string(body), "Unknown cursor") {
			d.save("") // it belongs to another device or mailbox. Without it, some messages may arrive a second time
			return end{why: 1006}
		}
		return end{why: response.StatusCode, minimum: retryAfter(response)}
	} else if err != nil {
		return end{why: 1006}
	}
	defer conn.CloseNow()
	conn.SetReadLimit(largest)
	fmt.Println("connected")
	opened := time.Now()
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
				return end{int(closed.Code), d.comeBack, time.Since(opened)}
			}
			return end{why: 1006, lasted: time.Since(opened)}
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
		return // the cursor of a partial result is that of the message before it
	case m.Type == "transcription" && m.Success != nil && !*m.Success:
		fmt.Println("failed:", m.Error)
	case m.Type == "transcription":
		fmt.Println("heard:", m.Text)
	case m.Type == "gap":
		fmt.Println("missed:", m.Missed)
	case m.Type == "reconnect":
		d.comeBack = time.Duration(m.AfterMS) * time.Millisecond
	} // ignore other types: newer gateways may send some
	if m.Cursor != nil {
		d.save(*m.Cursor) // after processing: the other order would lose the message in a crash
	}
}

// acknowledge sends at most one acknowledgement a second. A cursor covers all messages before it. It is saved first,
// because the gateway then deletes those messages.
func (d *device) acknowledge(ctx context.Context, conn *websocket.Conn) {
	for last := ""; ctx.Err() == nil; time.Sleep(scaled(time.Second)) {
		if cursor := *d.cursor.Load(); cursor != last {
			last = cursor
			ack, _ := json.Marshal(map[string]string{"type": "ack", "cursor": cursor})
			conn.Write(ctx, websocket.MessageText, ack)
		}
	}
}

// speak sends a recording in place of a microphone's samples, 100 ms at a time, in real time. The WAV header at its
// beginning names the format; a microphone sends raw samples: 16 kHz, mono, signed 16-bit little-endian.
func (d *device) speak(ctx context.Context, conn *websocket.Conn) {
	for piece := range slices.Chunk(d.recording, 3200) {
		if conn.Write(ctx, websocket.MessageBinary, piece) != nil {
			return // it is sent again on the next connection
		}
		time.Sleep(100 * time.Millisecond)
	}
	// Ends the utterance now instead of after 0.8 s of silence.
	if conn.Write(ctx, websocket.MessageText, []byte(`{"type":"audio_end"}`)) == nil {
		fmt.Println("spoke:", len(d.recording), "bytes")
		d.spoken.Store(true)
	}
}

// save writes the cursor atomically, even if the power fails.
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
