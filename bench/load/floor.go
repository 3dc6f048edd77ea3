package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// burst is how often the floor sends what is due: about as often as a producer with its linger sends a batch.
const burst = linger

// flood is a command of the floor: so many messages of so many bytes to all connections in turn, Each to one in
// immediate succession. Rate 0: as fast as it goes.
type flood struct {
	Messages int     `json:"messages"`
	Each     int     `json:"each"`
	Rate     float64 `json:"rate"`
	Bytes    int     `json:"bytes"`
}

// serveFloor takes every connection, and for each message does one send() and nothing else: what no server can do
// without. With a command it sends; between commands it accepts. Its port is its second argument.
func serveFloor() {
	runtime.LockOSThread()
	port, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := listen(port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %d\n", port)
	var sockets []int
	floods := make(chan func())
	go func() {
		answerCommands(func(line []byte) any {
			var c flood
			if err := json.Unmarshal(line, &c); err != nil {
				return failure{err.Error()}
			}
			done := make(chan any)
			floods <- func() { done <- send(sockets, c) }
			return <-done
		})
		os.Exit(0)
	}()
	for {
		select {
		case run := <-floods:
			run()
		default:
			if fd, ok := accept(listener); ok {
				sockets = append(sockets, fd)
			} else {
				time.Sleep(time.Millisecond)
			}
		}
	}
}

func listen(port int) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	// The harness keeps the port reserved with a socket that is bound to it as well.
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil {
		return 0, err
	}
	return fd, syscall.Listen(fd, 4096)
}

// accept answers whatever is asked with an upgrade. The client of the bench does not look at more than the status.
func accept(listener int) (int, bool) {
	fd, _, err := syscall.Accept(listener)
	if err != nil {
		return 0, false
	}
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	request, buffer := []byte(nil), make([]byte, 4096)
	for !bytes.Contains(request, []byte("\r\n\r\n")) {
		count, err := syscall.Read(fd, buffer)
		if err != nil || count <= 0 {
			syscall.Close(fd)
			return 0, false
		}
		request = append(request, buffer[:count]...)
	}
	_, _ = syscall.Write(fd, []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"))
	return fd, true
}

func send(sockets []int, c flood) any {
	if len(sockets) == 0 {
		return failure{"nobody is connected"}
	}
	frame := append(binary.BigEndian.AppendUint16([]byte{0x81, 126}, uint16(c.Bytes)), bytes.Repeat([]byte("x"), c.Bytes)...)
	waits, began, cpu := 0, time.Now(), threadSeconds()
	for sent := 0; sent < c.Messages; {
		due := c.Messages
		if c.Rate > 0 {
			if due = min(int(time.Since(began).Seconds()*c.Rate), c.Messages); due == sent {
				time.Sleep(burst)
				continue
			}
		}
		for ; sent < due; sent++ {
			for !sendOne(sockets[sent/c.Each%len(sockets)], frame) {
				waits++
				time.Sleep(time.Millisecond)
			}
		}
	}
	return map[string]any{"seconds": time.Since(began).Seconds(), "cpu_s": threadSeconds() - cpu, "waits": waits}
}

// sendOne is false if the socket is full. A frame that was taken in part would be a flood that nobody reads: an error.
func sendOne(fd int, frame []byte) bool {
	count, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&frame[0])),
		uintptr(len(frame)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
	if errno == syscall.EAGAIN {
		return false
	}
	if errno != 0 || int(count) != len(frame) {
		log.Fatalf("send: %v, %d of %d bytes", errno, count, len(frame))
	}
	return true
}

// threadSeconds is this thread's processor time so far: that of the sends, not of the program around them.
func threadSeconds() float64 {
	const thread = 1 // RUSAGE_THREAD
	var usage syscall.Rusage
	if err := syscall.Getrusage(thread, &usage); err != nil {
		log.Fatal(err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
