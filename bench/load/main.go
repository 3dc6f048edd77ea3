// The load of the benchmark: devices by the ten thousand, and the records for them, from one process.
//
// It reads commands from standard input, a JSON object a line, and answers each with a JSON object on a line of
// standard output. One thread owns all devices and waits for them with epoll: no goroutine, no timer and no buffer for
// each, so that one core is enough to drive a server on another. The records are written by franz-go.
//
// Its argument is the dialect that the server speaks. With "floor" in its place it is the opposite side instead: a server
// that does nothing but send.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"runtime"
	"syscall"
)

func main() {
	log.SetFlags(0)
	// Also on one core: the devices' thread waits in the kernel, and the publisher is not to wait for it.
	runtime.GOMAXPROCS(4)
	if len(os.Args) < 2 {
		log.Fatal("no dialect")
	}
	if os.Args[1] == "floor" {
		serveFloor()
		return
	}
	speaking, found := dialects[os.Args[1]]
	if !found {
		log.Fatalf("no dialect %q", os.Args[1])
	}
	fleet, err := newFleet([]byte(os.Getenv("COCOA_JWT_SECRET")), speaking)
	if err != nil {
		log.Fatal(err)
	}
	go fleet.run()
	answerCommands(func(line []byte) any { return obey(fleet, line) })
}

// answerCommands returns when standard input ends.
func answerCommands(obey func([]byte) any) {
	lines, answers := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for lines.Scan() {
		if err := answers.Encode(obey(lines.Bytes())); err != nil {
			log.Fatal(err)
		}
	}
}

type command struct {
	Do string `json:"do"`
	connecting
	flowing
	roaming
}

type failure struct {
	Error string `json:"error"`
}

func obey(fleet *fleet, line []byte) any {
	var c command
	if err := json.Unmarshal(line, &c); err != nil {
		return failure{err.Error()}
	}
	switch c.Do {
	case "connect":
		return fleet.connect(c.connecting)
	case "roam":
		return fleet.roam(c.connecting, c.roaming)
	case "open":
		return fleet.countOpen()
	case "returned":
		return fleet.report()
	case "vanish":
		return fleet.vanish(c.First, c.Count)
	case "flow":
		return fleet.startFlow(c.flowing)
	case "settle":
		return fleet.settle()
	case "expect":
		return fleet.expect()
	case "await":
		return fleet.await(c.Messages, c.WithinS)
	}
	return failure{fmt.Sprintf("no command %q", c.Do)}
}

// cpuSeconds is this process's processor time so far, user and system.
func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
