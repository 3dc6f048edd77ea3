package main

import (
	"slices"
	"strconv"
)

// quantiles of a number of measurements, in their unit.
type quantiles struct {
	Count int   `json:"count"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
	P999  int64 `json:"p999"`
	Max   int64 `json:"max"`
}

func summarise(values []int64) quantiles {
	if len(values) == 0 {
		return quantiles{}
	}
	slices.Sort(values)
	at := func(share float64) int64 { return values[min(int(share*float64(len(values))), len(values)-1)] }
	return quantiles{len(values), at(0.5), at(0.99), at(0.999), values[len(values)-1]}
}

func statusText(status int) string {
	if status == 0 {
		return "no HTTP"
	}
	return strconv.Itoa(status)
}
