package main

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const (
	tick           = 5 * time.Millisecond
	attemptPatient = 30 * time.Second // a device gives up a connection that does not come about
	retryPause     = time.Second      // ... and tries again, unless it was told when
	priority       = -10              // of the devices' thread: a message is to be seen when it is there
)

// fleet is all devices. Its thread (run) owns them and everything else in it but commands.
type fleet struct {
	secret   []byte
	dialect  dialect
	epoll    int
	wake     [2]int // a pipe: commands wait
	commands chan func()
	devices  []*device
	byFD     []*device
	buffer   []byte
	events   []syscall.EpollEvent
	goal     *goal
	// Keeps the devices connected; nil: they stay away.
	returning *returning
	heard     *heard
	flow      *flow
	lastTick  time.Time
}

func newFleet(secret []byte, speaking dialect) (*fleet, error) {
	f := &fleet{
		secret: secret, dialect: speaking, commands: make(chan func(), 1), buffer: make([]byte, 1<<18),
		events: make([]syscall.EpollEvent, 1024), heard: newHeard(),
	}
	var err error
	if f.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if err = syscall.Pipe2(f.wake[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return nil, err
	}
	return f, syscall.EpollCtl(f.epoll, syscall.EPOLL_CTL_ADD, f.wake[0],
		&syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(f.wake[0])})
}

func (f *fleet) run() {
	runtime.LockOSThread()
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), priority) // where that is allowed
	for {
		count, _ := syscall.EpollWait(f.epoll, f.events, int(f.goal.every()/time.Millisecond))
		for _, event := range f.events[:max(count, 0)] {
			f.handle(event)
		}
		if now := time.Now(); now.Sub(f.lastTick) >= f.goal.every() {
			f.lastTick = now
			f.goal.onTick(f, now)
			f.flow.onTick(f, now)
		}
	}
}

// do lets the fleet's thread run something, and waits for that.
func (f *fleet) do(what func()) {
	done := make(chan struct{})
	f.commands <- func() { what(); close(done) }
	_, _ = syscall.Write(f.wake[1], []byte{0})
	<-done
}

func (f *fleet) handle(event syscall.EpollEvent) {
	fd := int(event.Fd)
	if fd == f.wake[0] {
		_, _ = syscall.Read(fd, f.buffer)
		(<-f.commands)()
		return
	}
	d := f.byFD[fd]
	if d == nil {
		return
	}
	if d.state == connectingTCP {
		f.request(d)
		return
	}
	count, err := syscall.Read(fd, f.buffer)
	switch {
	case err == syscall.EAGAIN || err == syscall.EINTR:
	case err != nil:
		f.lose(d, err.Error())
	case count == 0:
		f.lose(d, "closed")
	default:
		f.read(d, f.buffer[:count])
	}
}

// request asks for the upgrade, now that the connection is there, or has failed.
func (f *fleet) request(d *device) {
	failed, err := syscall.GetsockoptInt(d.fd, syscall.SOL_SOCKET, syscall.SO_ERROR)
	if err == nil && failed != 0 {
		err = syscall.Errno(failed)
	}
	if err == nil {
		request := d.request
		if f.returning != nil {
			request = f.returning.request(d, time.Now())
		}
		_, err = syscall.Write(d.fd, request)
	}
	if err != nil {
		f.lose(d, err.Error())
		return
	}
	d.state = upgrading
	f.watch(d, syscall.EPOLL_CTL_MOD, syscall.EPOLLIN)
}

func (f *fleet) watch(d *device, how int, what uint32) {
	_ = syscall.EpollCtl(f.epoll, how, d.fd, &syscall.EpollEvent{Events: what, Fd: int32(d.fd)})
}

func (f *fleet) read(d *device, data []byte) {
	if len(d.rest) > 0 {
		data = append(d.rest, data...)
		d.rest = nil
	}
	if d.state == upgrading {
		answer, whole := readAnswer(data)
		if whole && answer.status != 101 {
			f.refused(d, answer)
			return
		}
		if whole {
			d.state, data = joining, data[answer.size:]
			if !f.dialect.welcomes {
				f.letIn(d, time.Now())
			}
		}
	}
	now := time.Now()
	for d.state == joining || d.state == open {
		opcode, payload, size, whole := readFrame(data)
		if !whole {
			break
		}
		data = data[size:]
		f.frame(d, opcode, payload, now)
	}
	if len(data) > 0 && d.state != away {
		d.rest = append([]byte(nil), data...)
	}
}

func (f *fleet) letIn(d *device, now time.Time) {
	d.state = open
	f.goal.onOpen(d, now)
	if f.returning != nil {
		f.returning.onOpen(d, now)
	}
}

func (f *fleet) frame(d *device, opcode byte, payload []byte, now time.Time) {
	switch opcode {
	case opText, opBinary:
		f.message(d, payload, now)
	case opPing:
		f.heard.ServerPings++
		d.control(opPong, payload)
	case opPong:
		if len(payload) == 8 {
			f.heard.pong(now.UnixMicro() - int64(binary.BigEndian.Uint64(payload)))
		}
	case opClose:
		reason := "close frame"
		if len(payload) >= 2 {
			reason = strconv.Itoa(int(binary.BigEndian.Uint16(payload)))
		}
		f.lose(d, reason)
	}
}

func (f *fleet) message(d *device, payload []byte, now time.Time) {
	if f.returning != nil && (f.returning.notice(d, payload) || !f.returning.message(d, payload)) {
		return
	}
	kind := f.dialect.kind(payload)
	switch {
	case kind == heartbeat:
		f.heard.ServerPings++
	case kind == welcome && d.state == joining:
		f.letIn(d, now)
	case kind == publication && d.state == open:
		f.heard.message(d, payload, now)
	default:
		f.heard.Strays++
	}
}

// hangUp takes a device off, whatever it was at.
func (f *fleet) hangUp(d *device) {
	if d.fd >= 0 {
		if f.returning != nil {
			f.returning.open[d.port]--
		}
		f.byFD[d.fd] = nil
		syscall.Close(d.fd)
	}
	d.fd, d.state, d.rest = -1, away, nil
}

// lose is called for a connection that failed, or that ended though nobody asked it to.
func (f *fleet) lose(d *device, reason string) {
	was := d.state
	f.hangUp(d)
	if was == open {
		f.heard.Closed[reason]++
		if f.returning != nil {
			f.goal.comeBack(d, f.returning.onEnd(d, time.Now()))
		}
		return
	}
	f.returning.onRefusal(d, time.Now())
	f.goal.onFailure(d, reason, time.Now())
}

func (f *fleet) refused(d *device, answer answer) {
	f.hangUp(d)
	f.returning.onRefusal(d, time.Now())
	f.goal.onRefusal(d, answer, time.Now())
}

// heard is what the devices have been told since it was made.
type heard struct {
	Received    int            `json:"received"`
	Strays      int            `json:"strays"`   // messages that name another device
	Disorder    int            `json:"disorder"` // messages that do not come after their predecessor
	ServerPings int            `json:"server_pings"`
	PingsSent   int            `json:"pings_sent"`
	Closed      map[string]int `json:"closed"` // connections that ended, by reason: an error, or the code of a close frame
	latencies   []int64        // microseconds
	pongs       []int64        // likewise
	last        time.Time
	name        []byte // as messages must name their recipients, if that is not each device by itself
	prefix      []byte
}

func newHeard() *heard { return &heard{Closed: map[string]int{}} }

func (h *heard) message(d *device, payload []byte, now time.Time) {
	h.Received++
	h.last = now
	sent := number(payload, `"sent_us":`)
	if sent < 0 { // of the floor, which says the same to everybody
		return
	}
	h.latencies = append(h.latencies, now.UnixMicro()-sent)
	if sequence := number(payload, `"seq":`); sequence > d.sequence {
		d.sequence = sequence
	} else {
		h.Disorder++
	}
	prefix, name := d.prefix, d.name
	if h.name != nil {
		prefix, name = h.prefix, h.name
	}
	if !bytes.HasPrefix(payload, prefix) || !bytes.Contains(payload, name) {
		h.Strays++
	}
}

func (h *heard) pong(roundTrip int64) { h.pongs = append(h.pongs, roundTrip) }
