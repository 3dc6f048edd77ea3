package main

import (
	"syscall"
	"time"
)

// dialsPerTick is how many devices begin to connect within a tick, or vanish: 40,000 a second, or as many as the core
// allows, which is more than any server takes. A broker on the same core gets none of it meanwhile, unless it goes first
// (ahead in bench/proc.py).
const dialsPerTick = 200

// connecting is what "connect" is told.
type connecting struct {
	Port    int     `json:"port"`
	First   int     `json:"first"`
	Count   int     `json:"count"`
	AtOnce  int     `json:"at_once"`
	WithinS float64 `json:"within_s"`
	Grouped bool    `json:"grouped"`      // the tokens of new devices name the group of all
	Rate    float64 `json:"connect_rate"` // devices a second, however many are still trying; 0: as fast as AtOnce allows
}

// connected is its answer. Times are from the command to each device's 101; with a rate, from the moment at which the
// device was to dial.
type connected struct {
	In       int            `json:"in"`
	Seconds  float64        `json:"seconds"`
	Attempts int            `json:"attempts"`
	Refused  map[string]int `json:"refused"` // by HTTP status
	Errors   map[string]int `json:"errors"`
	TimeUS   quantiles      `json:"time_us"`
	CPUS     float64        `json:"cpu_s"`
}

// goal is a number of devices that are to come in, so many at once. A nil goal has been reached.
type goal struct {
	connecting
	began    time.Time
	deadline time.Time
	next     int // index of the next device to begin with
	trying   int
	attempts []*device // in the order in which they began; some have ended since
	numbers  []int     // the attempt that each of those was
	away     []*device // to try again
	unborn   []*device // likewise, of this tick
	times    []int64
	answer   connected
	done     chan struct{}
	isOver   bool
}

func (f *fleet) connect(c connecting) any {
	g := &goal{connecting: c, next: c.First, done: make(chan struct{})}
	g.answer = connected{Refused: map[string]int{}, Errors: map[string]int{}}
	devices := f.devices[:len(f.devices):len(f.devices)] // a copy, from here on: the other thread reads
	for index := len(devices); index < c.First+c.Count; index++ {
		devices = append(devices, newDevice(index, f.secret, c.Port, f.dialect, c.Grouped))
	}
	g.began = time.Now()
	g.deadline = g.began.Add(time.Duration(c.WithinS * float64(time.Second)))
	cpu := cpuSeconds()
	f.do(func() { f.devices, f.goal = devices, g; g.onTick(f, time.Now()) })
	<-g.done
	var answer connected
	f.do(func() {
		answer = g.answer
		g.answer = connected{Refused: map[string]int{}, Errors: map[string]int{}}
	})
	answer.In = len(g.times)
	answer.Seconds = time.Since(g.began).Seconds()
	answer.TimeUS = summarise(g.times)
	answer.CPUS = cpuSeconds() - cpu
	return answer
}

// vanish resets the connections of some devices: a network that is gone, not devices that say goodbye.
func (f *fleet) vanish(first, count int) any {
	gone, last := 0, min(first+count, len(f.devices))
	for ; first < last; first += dialsPerTick {
		f.do(func() {
			for _, d := range f.devices[first:min(first+dialsPerTick, last)] {
				if d.state == open {
					gone++
				}
				f.hangUp(d)
			}
		})
		time.Sleep(tick)
	}
	return map[string]int{"gone": gone}
}

func (g *goal) onTick(f *fleet, now time.Time) {
	if g == nil {
		return
	}
	g.timeOut(f, now)
	left := dialsPerTick
	waiting := g.away[:0]
	for _, d := range g.away {
		if left > 0 && g.trying < g.AtOnce && !now.Before(d.retryAt) {
			left--
			g.attemptOne(f, d, now)
		} else {
			waiting = append(waiting, d)
		}
	}
	g.away = waiting
	defer func() { g.away, g.unborn = append(g.away, g.unborn...), nil }()
	for ; left > 0 && g.trying < g.AtOnce && g.next < g.First+g.Count && !now.Before(g.dueAt(g.next)); left-- {
		d := f.devices[g.next]
		g.next++
		g.attemptOne(f, d, now)
	}
	if !g.isOver && (len(g.times) == g.Count || now.After(g.deadline)) {
		g.isOver = true
		defer close(g.done)
		if f.returning != nil {
			g.AtOnce = g.Count
			return
		}
		f.goal = nil
		for _, d := range f.devices[g.First:min(g.next, g.First+g.Count)] {
			if d.state != open {
				f.hangUp(d)
			}
		}
	}
}

// every is how often it looks for devices that are to dial.
func (g *goal) every() time.Duration {
	if g != nil && g.Rate > 0 {
		return time.Millisecond
	}
	return tick
}

// dueAt is when a device is to dial for the first time.
func (g *goal) dueAt(index int) time.Time {
	if g.Rate == 0 {
		return g.began
	}
	return g.began.Add(time.Duration(float64(index-g.First) / g.Rate * float64(time.Second)))
}

func (g *goal) attemptOne(f *fleet, d *device, now time.Time) {
	d.attempt++
	d.began = now
	g.answer.Attempts++
	g.trying++
	port := g.Port
	if f.returning != nil {
		port = f.returning.choose(now)
	}
	if err := d.dial(port); err != nil {
		g.trying--
		g.answer.Errors[err.Error()]++
		d.retryAt = now.Add(retryPause)
		g.unborn = append(g.unborn, d)
		return
	}
	for len(f.byFD) <= d.fd {
		f.byFD = append(f.byFD, make([]*device, 1024)...)
	}
	f.byFD[d.fd] = d
	if f.returning != nil {
		f.returning.open[port]++
	}
	g.attempts, g.numbers = append(g.attempts, d), append(g.numbers, d.attempt)
	f.watch(d, syscall.EPOLL_CTL_ADD, syscall.EPOLLOUT)
}

func (g *goal) timeOut(f *fleet, now time.Time) {
	for len(g.attempts) > 0 {
		d, number := g.attempts[0], g.numbers[0]
		over := d.attempt != number || d.state == open || d.state == away
		if !over && now.Sub(d.began) < attemptPatient {
			return
		}
		g.attempts, g.numbers = g.attempts[1:], g.numbers[1:]
		if !over {
			f.lose(d, "timed out")
		}
	}
}

func (g *goal) onOpen(d *device, now time.Time) {
	if g == nil {
		return
	}
	g.trying--
	if !g.isOver {
		g.times = append(g.times, now.Sub(g.dueAt(d.index)).Microseconds())
	}
}

func (g *goal) onFailure(d *device, reason string, now time.Time) {
	if g != nil {
		g.answer.Errors[reason]++
		g.trying--
		g.comeBack(d, now.Add(retryPause))
	}
}

func (g *goal) onRefusal(d *device, answer answer, now time.Time) {
	if g != nil {
		g.answer.Refused[statusText(answer.status)]++
		g.trying--
		g.comeBack(d, now.Add(max(answer.retryAfter, retryPause)))
	}
}

func (g *goal) comeBack(d *device, at time.Time) {
	d.retryAt = at
	g.away = append(g.away, d)
}
